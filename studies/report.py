"""A study as one HTML page: a summary, then folded tables, pictures, failed runs, settings and
versions. The summary is also the beginning of the tables.

The page is one file without scripts or links to other files. Its template is report.html.
"""

import shlex
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from common.names import printable
from common.pages import data_address, render
from common.results import RunResult
from common.text import read_text
from configs.files import YAML_BYTES, read_yaml
from runs.config import flatten

from .compare import between, seed_interval, smallest_difference
from .plan import Run
from .progress import Progress
from .tables import Summary, marked
from .write import (
    MISSING,
    Cell,
    Table,
    about_mark,
    accuracy,
    build_tables,
    describe_spread,
    grid,
    number,
)

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
    from .plots import draw  # it imports matplotlib, which the summary does not need

    with TemporaryDirectory() as folder:
        drawn = draw(summary, Path(folder), ["svg"])
        return [
            (name, caption, data_address(file.read_bytes(), "svg+xml"))
            for name, caption, (file,) in drawn
        ]


OF_CONFIG = "From the config.yaml of the finished runs; several values: runs of the method differ."


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
        differs = len(set().union(*of_methods.values())) > 1
        if not key.startswith(RUN_KEYS) and (differs or key.startswith(ALWAYS_SHOWN)):
            texts = ["; ".join(dict.fromkeys(of_methods[method])) or MISSING for method in methods]
            rows.append([Cell(key), *map(Cell, texts)])
    return Table("Settings of each method", ["setting", *methods], rows, OF_CONFIG)


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


def overview(summary: Summary) -> list[Table]:
    """For each protocol, the best method first: averages over datasets, the training time, the
    calibration error, and the choices with their images."""
    tables = []
    averages = summary.cells.query("dataset == 'average'")
    for protocol in summary.study.protocols:
        cells = averages[averages["protocol"] == protocol]
        cells = cells[cells["mean"].notna().groupby(cells["method"]).transform("any")]
        if not cells.empty:
            tables.append(overview_of(summary, protocol, cells))
    return tables


def overview_of(summary: Summary, protocol: str, cells: pd.DataFrame) -> Table:
    """The table of one protocol, from its averages."""
    main = summary.main_part(protocol)
    # The cells of the main part sort the methods
    is_main = cells["part"] == main
    best_first = cells[is_main].sort_values("mean", ascending=False, kind="stable")
    cells = pd.concat([best_first, cells[~is_main]])
    header, rows = grid(cells, "part", partial(accuracy, summary))
    times = summary.times[summary.times["protocol"] == protocol]
    if protocol == "few_shot":  # every number of shots is trained
        times = times[times["part"] == main]
    more = {"training time (s)": seconds(times)}
    more |= calibration_errors(summary, protocol)
    choices = {name: chosen_on(summary, protocol, name) for name in cells["method"].unique()}
    if any(choices.values()):
        more["chosen on images"] = choices
    for row in rows:
        row += [Cell(texts.get(row[0].text, MISSING)) for texts in more.values()]
    devices = ", ".join(times["device"].unique())
    note = (
        f"Sorted by {main}. {describe_spread(summary)} Averages over "
        f"{', '.join(summary.averaged(protocol))}. Training time: mean of a run"
        f"{f' on {devices}' if devices else ''}.{about_mark(cells)}"
    )
    return Table(f"Summary: {protocol}", [*header, *more], rows, note)


def calibration_errors(summary: Summary, protocol: str) -> dict[str, dict]:
    """The ECE of each method in the parts of a protocol that recorded it."""
    measures = summary.measures.query("protocol == @protocol").dropna(subset="ece")
    return {
        f"ECE, {part} (%)": rows.set_index("method")["ece"].map(number).to_dict()
        for part, rows in measures.groupby("part", sort=False)
    }


def seconds(times: pd.DataFrame) -> dict[str, str]:
    """The training time of each method, on each device."""
    several = times["device"].nunique() > 1
    texts = times["seconds"].map("{:.1f}".format)
    if several:
        texts += times["device"].map(" ({})".format)
    return dict(texts.groupby(times["method"]).agg(", ".join))


def chosen_on(summary: Summary, protocol: str, method: str) -> str:
    """The choices of a method's runs and their images, by the data-use cards; empty without
    cards.
    """
    runs = {run: results for run, results in summary.results.items() if run.protocol == protocol}
    cards = [results.data_use for run, results in runs.items() if run.variant.name == method]
    known = [card for card in cards if card]
    texts = {"not known" for card in known if card.choose is None}
    for choice in (choice for card in known for choice in card.choose or ()):
        text = f"{printable(choice.what)}: {printable(choice.split)}"
        texts.add(marked(text, choice.test_images > 0))
    return ", ".join(sorted(texts)) or ("nothing" if known else "")


def headlines(summary: Summary) -> list[str]:
    """For each protocol and kind of method, how sure it is that the best method is better than the
    second.

    Methods that were selected on test images take no part.
    """
    sentences = []
    for protocol in summary.study.protocols:
        part = summary.main_part(protocol)
        cells = summary.cells.query(
            "protocol == @protocol and part == @part and dataset == 'average'"
        )
        cells = (
            cells[~cells["selected_on_test"]]
            .dropna(subset="mean")
            .sort_values("mean", ascending=False)
        )
        for kind, of_kind in cells.groupby("kind", sort=False):
            if len(of_kind) < 2:
                continue
            first, second = list(of_kind.itertuples())[:2]
            among = f" of the {kind} methods" if cells["kind"].nunique() > 1 else ""
            if first.rank == second.rank:
                both = f"{first.method} and {second.method} are both first{among}"
                sentences.append(f"{protocol}: {both} with {part} {first.mean:.1f}%.")
                continue
            text = (
                f"{protocol}: {first.method} is first{among} with {part} {first.mean:.1f}%, "
                f"{first.mean - second.mean:.1f} points above {second.method}. "
            )
            sentences.append(text + how_sure(summary, protocol, part, first.method, second.method))
    return sentences


def how_sure(summary: Summary, protocol: str, part: str, first: str, second: str) -> str:
    """A sentence on whether the seeds show that the first method is better than the second."""
    one = summary.by_seed(protocol, part, first)
    other = summary.by_seed(protocol, part, second)
    seeds = (one - other)["average"].dropna()
    interval = seed_interval(seeds)
    shown = f"95% interval {between(interval, digits=1)}"
    if pd.isna(interval[0]):
        return (
            f"With {len(seeds)} complete seed{'s' * (len(seeds) != 1)}, nothing says how sure "
            "this is."
        )
    if pd.isna(least := smallest_difference(seeds)):
        return f"All {len(seeds)} seeds have the same difference."
    if interval[0] > 0:
        return f"The {len(seeds)} seeds show that it is better ({shown})."
    return (
        f"The seeds do not show that it is better ({shown}): with {len(seeds)} "
        f"seeds only a difference above {least:.1f} points of this mean over all datasets "
        "would show (of one dataset, a larger one: tools/compare.py)."
    )
