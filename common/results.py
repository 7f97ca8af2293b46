"""The files of a finished run that others read: its configuration and what it has measured.

The functions on a run raise LookupError, TypeError, AttributeError or ValueError for a damaged
record. After `read_results` they do not, because it has called them.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .errors import UsageError
from .text import read_json

RUN_CONFIG_FILE = "config.yaml"
RESULTS_FILE = "results.json"
CALIBRATION = "calibration.json"  # inference.calibrated has its form
FOLDS = "folds"  # a folder; inference.classifier writes it
SEEN = "seen.npz"  # inference.seen has its form


class Measure(NamedTuple):
    """A measure of a test."""

    label: str  # its name in tables
    most: float = 100.0  # the largest value; the least is 0
    form: str = ".2f"  # how tables write a value
    log_form: str = ".1f"  # how logs do
    unit: str = "%"  # in a log; nothing for NLL (in nats) and the Brier score


MEASURES = {
    "accuracy": Measure("accuracy"),
    "error_rate": Measure("error rate"),
    "macro_f1": Measure("macro F1"),
    "top5_accuracy": Measure("top-5"),
    "mean_class_accuracy": Measure("by class"),
    "ece": Measure("ECE"),
    "adaptive_ece": Measure("adaptive ECE"),
    "nll": Measure("NLL", 1e6, ".3f", ".4f", ""),
    "brier": Measure("Brier", 2.001, ".3f", ".4f", ""),
}
# After a calibration (TEST.CALIBRATE), and of base and new classes together: columns of tables.
OTHER_MEASURES = {
    "ECE calibrated": MEASURES["ece"],
    "NLL calibrated": MEASURES["nll"],
    "OpenworldAUC": Measure("OpenworldAUC"),
}
# What tables and plots read besides: numbers with the largest value, and texts.
NUMBERS = {"n_test": 1e9} | {name: measure.most for name, measure in MEASURES.items()}
# May be impossible in old files: they were differences of the wall clock
SECONDS = (
    "train_seconds",
    "test_seconds",
)
TEXTS = ("trainer", "method", "dataset", "classes", "device", "backbone", "corruption")


def read_results(folder: Path) -> dict | None:
    """results.json of a finished run; None without such a file, or without a test. Impossible times
    become None. Raises UsageError if the file is damaged."""
    file = folder / RESULTS_FILE
    try:
        if not file.is_file():
            return None
        run = read_json(file)
        for key, most in NUMBERS.items():
            if run.get(key) is not None and not 0 <= run[key] <= most:  # also true of NaN
                raise ValueError(f"{key} is {run[key]}")
        run |= {
            key: None for key in SECONDS if run.get(key) is not None and not 0 <= run[key] <= 10**9
        }
        for key in TEXTS:
            if run.get(key) is not None and not run[key].isprintable():
                raise ValueError(f"{key} is {run[key]!r}")
        if not all(isinstance(text, str) for text in run.get("versions", {}).values()):
            raise ValueError("a version must be text")
        selected_on_test(run), test_record(run), learned_from(run), detected(run), others(run)
        return run if run["accuracy"] is not None else None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UsageError(f"{file} is damaged", "delete it and start its run again", file) from error


def selected_on_test(run: dict) -> bool:
    """Whether test images chose the epoch or a setting of a run; False if old results do not say
    it.
    """
    choices = (run.get("data_use") or {}).get("choose") or ()
    return max((choice["test_images"] for choice in choices), default=0) > 0


def test_record(run: dict) -> tuple[str, int] | None:
    """The checksum of the list of tested images, and how many tests of them ended in the folder of
    the run.

    None for results of versions that did not record it.
    """
    record = (run.get("data_use") or {}).get("test")
    if record is None:
        return None
    sha256 = record["sha256"]
    evaluations = record["evaluations"]
    if not is_checksum(sha256) or not 0 <= evaluations <= 10**9:
        raise ValueError(f"test is {record}")
    return sha256, evaluations


def learned_from(run: dict) -> str | None:
    """The checksum of the list of images that the tested prompts were last learned from; None if it
    is not recorded.
    """
    *_, last = (run.get("data_use") or {}).get("fit") or [{}]
    sha256 = last.get("sha256")
    if sha256 is not None and not is_checksum(sha256):
        raise ValueError(f"fit is {last}")
    return sha256


def digest_of_rows(rows: Iterable[tuple[str, int, str]]) -> str:
    """The SHA-256 of a list of images, each with its path, label and class name: see
    `data_use.list_digest`.
    """
    sha256 = hashlib.sha256()
    for path, label, name in rows:
        sha256.update(f"{path}\0{label}\0{name}\n".encode(errors="surrogateescape"))
    return sha256.hexdigest()


def is_checksum(sha256: str) -> bool:
    return len(sha256) == 64 and sha256.isalnum()


def detected(run: dict) -> dict[str, float]:
    """The AUROC of MCM in percent for each dataset of --ood, by its name there."""
    aurocs: dict[str, float] = {}
    for dataset in run.get("ood") or ():
        name = dataset["name"]
        scores = dataset["scores"]
        value = scores["MCM"]["auroc"] if "MCM" in scores else None
        if not name.isprintable() or not (value is None or 0 <= value <= 100):
            raise ValueError(f"ood is {dataset}")
        if value is not None:
            aurocs[name] = value
    return aurocs


def others(run: dict) -> dict[str, float]:
    """The OTHER_MEASURES of a run; those that it lacks are missing, and those of a calibration on
    test images.
    """
    measures: dict[str, float] = {}
    if (calibration := run.get("calibration")) is not None and not calibration.get("test_images"):
        measures = {
            f"{key.upper()} calibrated": calibration["after"][key] for key in ("ece", "nll")
        }
    if (open_world := run.get("open_world")) is not None:
        measures["OpenworldAUC"] = open_world["openworld_auc"]
    if not all(0 <= value <= OTHER_MEASURES[key].most for key, value in measures.items()):
        raise ValueError(f"a measure is out of range: {measures}")
    return measures
