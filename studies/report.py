"""A study as one HTML page: a summary, then folded tables, pictures, failed runs, settings and
versions.

The page is one file without scripts or links to other files. Its template is report.html.
"""

import shlex
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.pages import data_address, render
from common.results import RunResult
from common.text import read_text
from configs.files import YAML_BYTES, read_yaml
from runs.config import flatten

from .plan import Run
from .plots import draw
from .progress import Progress
from .tables import Summary
from .write import MISSING, Cell, Table, build_tables, headlines, overview

LEAD = "accuracy_time"  # the picture below the summary
# Settings that always have a row; others have one if they differ between runs.
TRAINING_KEYS = (
    "OPTIM.NAME",
    "OPTIM.LR",
    "OPTIM.MAX_EPOCH",
    "OPTIM.WARMUP_EPOCH",
    "OPTIM.WEIGHT_DECAY",
)
IMAGE_KEYS = (
    "DATALOADER.TRAIN_X.BATCH_SIZE",
    "MODEL.BACKBONE.NAME",
    "INPUT.SIZE",
    "INPUT.TRANSFORMS",
)
ALWAYS_SHOWN = ("TRAINER.", *IMAGE_KEYS, *TRAINING_KEYS)
# Settings that a study varies from run to run; the tables show them.
RUN_KEYS = ("DATASET.NAME", "DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES", "OUTPUT_DIR", "SEED")


def page(summary: Summary, progress: Progress, file: Path) -> str:
    """The page, as HTML. It quotes the study file."""
    drawn = pictures(summary)
    commands = {run: f"python train.py {shlex.join(run.arguments)}" for run in progress.failed}
    content: dict[str, Any] = {"name": file.stem, "progress": progress, "commands": commands}
    content["made"] = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
    content |= {"warnings": summary.warnings, "headlines": headlines(summary)}
    content |= {"overview": overview(summary), "results": build_tables(summary)}
    content["lead"] = [picture for picture in drawn if picture[0] == LEAD]
    content["pictures"] = [picture for picture in drawn if picture[0] != LEAD]
    content["settings"] = settings(summary.results)
    content["versions"] = versions(summary.results.values())
    content["source"] = read_text(file, YAML_BYTES)
    return render(Path(__file__).with_name("report.html"), **content)


def pictures(summary: Summary) -> list[tuple[str, str, str]]:
    """The name of each picture, its caption, and the picture as a data: address."""
    with TemporaryDirectory() as folder:
        drawn = draw(summary, Path(folder), ["svg"])
        return [
            (name, caption, data_address(file.read_bytes(), "svg+xml"))
            for name, caption, (file,) in drawn
        ]


def settings(runs: Collection[Run]) -> Table:
    """The settings of each method: every value that its finished runs have."""
    # Setting -> method -> values
    values: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        file = run.folder / "config.yaml"
        for key, value in flatten(read_yaml(file)).items() if file.is_file() else ():
            values[key][run.variant.name].append(str(value) or "''")
    methods = list(dict.fromkeys(run.variant.name for run in runs))
    rows = []
    for key, of_methods in sorted(values.items()):
        if is_shown(key, of_methods):
            texts = ["; ".join(dict.fromkeys(of_methods[method])) or MISSING for method in methods]
            rows.append([Cell(key), *map(Cell, texts)])
    note = "From the config.yaml of the finished runs; several values: runs of the method differ."
    return Table("Settings of each method", ["setting", *methods], rows, note)


def is_shown(key: str, of_methods: dict[str, list[str]]) -> bool:
    """Whether a setting has a row."""
    differs = len(set().union(*of_methods.values())) > 1
    return not key.startswith(RUN_KEYS) and (differs or key.startswith(ALWAYS_SHOWN))


def versions(results: Iterable[RunResult]) -> Table:
    """The devices and package versions of the finished runs, with the number of runs where they
    differ.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for run in results:
        for name, value in {"device": run.device, **run.versions}.items():
            counts[name][str(value or MISSING)] += 1
    rows = []
    for name, values in counts.items():
        texts = [
            f"{value} (n={count})" if len(values) > 1 else value
            for value, count in values.most_common()
        ]
        rows.append([Cell(name), Cell("; ".join(texts))])
    return Table("Versions and devices", ["name", "of finished runs"], rows)
