"""The files of a finished run that others read: its configuration and what it has measured."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from .errors import UsageError
from .files import RESULTS_FILE
from .records import Count, Phase, SelectionRecord, Texts, read
from .schema import Accepts
from .text import read_json

CALIBRATION = "calibration.json"  # inference.calibrated has its form
SEEN = "seen.npz"  # inference.seen has its form
MOST_NATS = 1e6  # of a mean negative log-likelihood
MOST_BRIER = 2.001
Percentage = Annotated[float, Accepts(float, 0, 100)]
Nats = Annotated[float, Accepts(float, 0, MOST_NATS)]
Seconds = Annotated[float, Accepts(float, 0, 1e9)]
Brier = Annotated[float, Accepts(float, 0, MOST_BRIER)]


class Measure(NamedTuple):
    """A measure of a test."""

    label: str  # its name in tables
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
    "nll": Measure("NLL", ".3f", ".4f", ""),
    "brier": Measure("Brier", ".3f", ".4f", ""),
}
# After a calibration (TEST.CALIBRATE), and of base and new classes together: columns of tables.
OTHER_MEASURES = {
    "ECE calibrated": MEASURES["ece"],
    "NLL calibrated": MEASURES["nll"],
    "OpenworldAUC": Measure("OpenworldAUC"),
}


@dataclass(frozen=True, kw_only=True)
class DataUse:
    """The card of a run: which images it has seen in which phase.

    Attributes:
        kind: of the method (`data_use.METHOD_KINDS`).
        fit: what the tested prompts were learned from; None if that is not known.
        choose: the choices of epochs and settings; None if they are not known.
        test: the tested images; None without a test.
    """

    kind: str | None = None
    fit: list[Phase] | None = None
    choose: list[SelectionRecord] | None = None
    test: Phase | None = None


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """Measures after a calibration."""

    ece: Percentage
    nll: Nats


@dataclass(frozen=True, kw_only=True)
class CalibratedResult:
    """The calibration of a run (TEST.CALIBRATE)."""

    after: Repaired
    test_images: Count = 0  # how many of its images are test images


@dataclass(frozen=True, kw_only=True)
class OpenWorldResult:
    """The test of base and new classes together."""

    openworld_auc: Percentage


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well a score detects out-of-distribution images."""

    auroc: Percentage | None = None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of --ood; tables show MCM."""

    MCM: Detection | None = None


@dataclass(frozen=True, kw_only=True)
class OutsideResult:
    """A dataset of --ood."""

    name: str
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """results.json of a finished run that was tested: what others read of it.

    Values are None, or empty, where an earlier version did not write them or nothing was measured.
    Measures are those of MEASURES.
    """

    accuracy: Percentage
    error_rate: Percentage | None = None
    macro_f1: Percentage | None = None
    top5_accuracy: Percentage | None = None
    mean_class_accuracy: Percentage | None = None
    ece: Percentage | None = None
    adaptive_ece: Percentage | None = None
    nll: Nats | None = None
    brier: Brier | None = None
    n_test: Count | None = None
    trainer: str = ""
    method: str = ""  # of two methods, such as `TransCLIP+CoOp`
    dataset: str = ""
    classes: str = ""
    shots: int = -1
    seed: int = -1
    split: str | None = None
    backbone: str = ""
    weights_sha256: str = ""
    epochs: Count | None = None
    tested_epoch: Count | None = None
    checkpoint_sha256: str = ""
    train_seconds: Seconds | None = None
    test_seconds: Seconds | None = None
    device: str | None = None
    date: str | None = None
    version: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    versions: Texts = field(default_factory=dict)
    data_use: DataUse | None = None
    calibration: CalibratedResult | None = None
    open_world: OpenWorldResult | None = None
    ood: list[OutsideResult] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The method, with the one whose answers it reads."""
        return self.method or self.trainer

    @property
    def card(self) -> DataUse:
        """`data_use`, empty if it is not recorded."""
        return self.data_use or DataUse()

    @property
    def selected_on_test(self) -> bool:
        """Whether test images chose the epoch or a setting; False if old results do not say it."""
        return any(choice.test_images for choice in self.card.choose or ())

    @property
    def learned_from(self) -> str | None:
        """The checksum of the list of images that the tested prompts were last learned from; None
        if it is not recorded.
        """
        phases = self.card.fit
        return phases[-1].sha256 if phases else None

    @property
    def aurocs(self) -> dict[str, float]:
        """The AUROC of MCM in percent for each dataset of --ood, by its name there."""
        found = {outside.name: outside.scores.MCM for outside in self.ood}
        return {name: mcm.auroc for name, mcm in found.items() if mcm and mcm.auroc is not None}

    @property
    def other_measures(self) -> dict[str, float]:
        """The OTHER_MEASURES that it has, without those of a calibration on test images."""
        measures: dict[str, float] = {}
        if self.calibration and not self.calibration.test_images:
            after = self.calibration.after
            measures = {"ECE calibrated": after.ece, "NLL calibrated": after.nll}
        if self.open_world:
            measures["OpenworldAUC"] = self.open_world.openworld_auc
        return measures


def read_results(folder: Path) -> RunResult | None:
    """results.json of a finished run; None without such a file, or without a test. Raises
    UsageError if the file is damaged."""
    file = folder / RESULTS_FILE
    try:
        if not file.is_file():
            return None
        content = read_json(file)
        if "accuracy" in content and content["accuracy"] is None:
            return None
        results = read(RunResult, content)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} is damaged", "delete it and start its run again", file) from error
    if content.get("corruption"):
        fault = f"{file} has a test of corrupted images, by an older version"
        raise UsageError(fault, "delete it; a folder of corrupted images is a dataset", file)
    return results


def digest_of_rows(rows: Iterable[tuple[str, int, str]]) -> str:
    """The SHA-256 of a list of images, each with its path, label and class name: see
    `data_use.list_digest`.
    """
    sha256 = hashlib.sha256()
    for path, label, name in rows:
        sha256.update(f"{path}\0{label}\0{name}\n".encode(errors="surrogateescape"))
    return sha256.hexdigest()
