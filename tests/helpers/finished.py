"""Results of a study's runs, real and made up."""

import os
import subprocess
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from drawn import cfg_from
from marks import of_json, to_json

from common.records import read
from common.results import RunResult, digest_of_rows
from studies.plan import Run, Study
from studies.progress import collect_results
from studies.report import overview
from studies.run import LocalExecutor, execute_run
from studies.study import Variant
from studies.tables import Summary
from studies.write import Table, build_tables

TIMES = ("train_seconds", "test_seconds", "date", "checkpoint_sha256")


LISTED = {"dataset": "Set", "classes": "all", "images": 40}


def phase(**facts) -> dict:
    """The record of learning from images, or of a test."""
    return LISTED | {"split": "test", "labels": 40, "class_names": 2} | facts


def choice(test_images: int, **facts) -> dict:
    """The record of a choice of the epoch on validation images, some of them test images."""
    return LISTED | {"what": "epoch", "split": "val", "test_images": test_images} | facts


def made_up(accuracy: float, **measured) -> dict:
    """The results of a run with an accuracy."""
    usual = {"n_test": 10, "train_seconds": 2.0, "test_seconds": 1.0, "device": "cpu"}
    return usual | {"accuracy": accuracy} | measured


def predicted(label, classes, probabilities, names, paths, **others) -> dict[str, Any]:
    """The arrays of predictions.npz of a test; `classes` are the most probable ones."""
    rows = zip(paths, map(int, label), (names[one] for one in label), strict=True)
    arrays = {"label": label, "classes": classes, "probabilities": probabilities}
    arrays |= {"log_probability": np.full(len(label), -1, np.float32)}
    arrays |= {"brier": np.full(len(label), 0.5, np.float32), "image": np.array(paths)}
    arrays |= {"class_names": np.array(names), "dataset": "Set", "split": "test"}
    return arrays | {"images_sha256": digest_of_rows(rows)} | others


def finish(run: Run, accuracy: float, **measured) -> None:
    """Write made-up results of a run."""
    run.folder.mkdir(parents=True)
    words = list(run.arguments)
    for option, value in {
        "--output-dir": "FOLDER",
        "--seed": "77",
        "--model-dir": "FOLDER",
    }.items():
        if option in words:
            words[words.index(option) + 1] = value
    settings, backbone = settings_of(tuple(words))
    text = settings.replace("\nSEED: 77\n", f"\nSEED: {run.seed}\n")
    (run.folder / "config.yaml").write_text(text)
    to_json(run.folder / "results.json", made_up(accuracy, **{"backbone": backbone} | measured))


@cache
def settings_of(arguments: tuple[str, ...]) -> tuple[str, str]:
    """The text of config.yaml, and the backbone. Made-up studies have hundreds of runs."""
    cfg = cfg_from(*arguments)
    return cfg.dump(), cfg.MODEL.BACKBONE.NAME


def different(run: Run) -> tuple[float, dict]:
    """An accuracy of a run that differs from those of others, MPL is 5 points better; and a
    training time.
    """
    drawn = (
        zlib.crc32(repr((run.variant.name, run.dataset, run.seed, run.shots, run.classes)).encode())
        % 1000
        / 100
    )
    seconds = 10.0 * len(run.variant.name) * run.variant.facts.learns
    return 60 + drawn + 5 * (run.variant.method == "MPL"), {"train_seconds": seconds}


def study_of(output: Path, methods: Iterable[str], *protocols: str, **settings) -> Study:
    """A study of these methods with the small CLIP: by default `few_shot` on small_land with one
    seed.

    Args:
        methods: their names, or {name of a variant: method}.
    """
    named = methods if isinstance(methods, Mapping) else {name: name for name in methods}
    cross = "small_cross_datasets" if "cross_dataset" in protocols else ""
    variants = tuple(
        Variant(name, method, "small", cross, () if name == method else ("OPTIM.LR", "1.0"))
        for name, method in named.items()
    )
    usual = {
        "datasets": ("small_land",),
        "protocols": protocols or ("few_shot",),
        "seeds": (1,),
        "output": output,
    }
    return Study(variants, **usual | settings)


def summarise(study: Study, accuracy: Callable | None = None, intervals: bool = False) -> Summary:
    """The results in its folders, or those that `accuracy(run)` makes up: a number, a number and
    what else was measured, or None for a run that is missing."""
    if accuracy is None:
        return Summary(study, collect_results(study), intervals)
    results = {}
    for run in study.runs():
        found = accuracy(run)
        if found is not None:
            value, measured = found if isinstance(found, tuple) else (found, {})
            content = made_up(value, **{"backbone": study.backbone or "ViT-B/16"} | measured)
            results[run] = read(RunResult, content)
    return Summary(study, results, intervals)


def tables_of(summary: Summary) -> dict[str, Table]:
    """All its tables by title, those of the first page too."""
    return {table.title: table for table in (*overview(summary), *build_tables(summary))}


class InThisProcess(LocalExecutor):
    """An executor that starts no process; its runs have `more` arguments."""

    more: tuple[str, ...] = ()

    def submit(self, run: Run) -> Future:
        done: Future = Future()
        done.set_result(execute_run([*run.arguments, *self.more]))
        return done


def figures(study: Study) -> dict[str, dict]:
    """results.json of every run without its times."""
    found = {}
    for run in study.runs():
        results = of_json(run.folder / "results.json")
        found[str(run.folder.relative_to(study.output))] = {
            k: v for k, v in results.items() if k not in TIMES
        }
    return found


def members(session: int) -> list[int]:
    """The live processes of a session."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True, check=False
    )
    return [
        int(pid)
        for pid, state in map(str.split, listed.stdout.splitlines())
        if not state.startswith("Z")
    ]


def slowdown() -> float:
    """How many times longer a process takes because of others: 1 on a machine with a core for
    each.
    """
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def wait_until(condition, process, seconds: float = 240) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.05)
