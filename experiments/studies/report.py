"""A study as one HTML page: a summary, then folded tables, pictures, settings, versions and failed runs.

The page is one file without scripts or links to other files. Its template is report.html.
"""

import shlex
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

from common.pages import render
from common.text import read_text

from ..configs import YAML_BYTES, read_yaml
from ..configuration import flatten
from .plots import draw
from .progress import Progress
from .render import MISSING, Cell, Table, build_tables, overview
from .spec import Run
from .tables import Summary

LEAD = "accuracy_time"  # the picture below the summary
# Settings that always have a row; others have one if they differ between the runs of a method.
ALWAYS_SHOWN = (
    *("TRAINER.", "OPTIM.", "DATALOADER.TRAIN_X.BATCH_SIZE", "MODEL.BACKBONE.NAME", "INPUT.SIZE"),
    *("INPUT.INTERPOLATION", "INPUT.TRANSFORMS", "INPUT.RRCROP_SCALE", "INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD"),
)
TRAIN_ONLY = ("OPTIM.", "DATALOADER.TRAIN_X.")  # without meaning for a method that does not learn
# Settings that a study varies from run to run; the tables show them.
RUN_KEYS = ("DATASET.NAME", "DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES", "OUTPUT_DIR", "SEED")


def page(summary: Summary, progress: Progress, file: Path) -> str:
    """The page, as HTML.

    Args:
        file: the study file, which the page quotes.
    """
    source, drawn = read_text(file, YAML_BYTES), pictures(summary)
    comment = takewhile(lambda line: line.startswith("#"), source.splitlines())
    return render(
        Path(__file__).with_name("report.html"),
        name=file.stem,
        about=" ".join(line.strip("# ") for line in comment),
        made=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        progress=progress,
        warnings=summary.warnings,
        overview=overview(summary),
        lead=[picture for picture in drawn if picture[0] == LEAD],
        results=build_tables(summary),
        pictures=[picture for picture in drawn if picture[0] != LEAD],
        commands={run: shlex.join(["python", "train.py", *run.arguments]) for run in progress.failed},
        unfinished=unfinished(progress),
        settings=settings_tables(progress),
        versions=versions(progress.results.values()),
        source=source,
    )


def pictures(summary: Summary) -> list[tuple[str, str, str]]:
    """The name of each picture, its caption, and the picture itself as a data: address."""
    with TemporaryDirectory() as folder:
        return [
            (name, caption, f"data:image/svg+xml;base64,{b64encode(file.read_bytes()).decode()}")
            for name, caption, (file,) in draw(summary, Path(folder), ["svg"])
        ]


def unfinished(progress: Progress) -> Table | None:
    """The number of runs in each state, for every protocol and method with unfinished runs."""
    states = ("done", "running", "failed", "left")
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for state in states:
        for run in getattr(progress, state):
            counts[run.protocol, run.variant.name][state] += 1
    rows = [
        [Cell(text) for text in (*names, *(str(count[state]) for state in states))]
        for names, count in counts.items()
        if count["done"] < count.total()
    ]
    return Table("By protocol and method", ["protocol", "method", *states], rows) if rows else None


def settings_tables(progress: Progress) -> list[Table]:
    """The settings of the finished runs: those that all methods share, then those of each method."""
    configs = {run: run_settings(run) for run in progress.done if (run.folder / "config.yaml").is_file()}
    # key -> method -> run -> value
    found: dict[str, dict[str, dict[Run, str]]] = defaultdict(lambda: defaultdict(dict))
    for run, config in configs.items():
        for key, value in config.items():
            found[key][run.variant.name][run] = value
    learning = {run.variant.name for run in configs if run.variant.learns}
    methods = [variant.name for variant in progress.study.variants if variant.name in found["TRAINER.NAME"]]
    differing = [key for key in sorted(found) if any(len(set(runs.values())) > 1 for runs in found[key].values())]
    shared, by_method = [], []
    for key in sorted(found):
        if key in differing or key.startswith(ALWAYS_SHOWN):
            values = {name: format_setting(runs) for name, runs in found[key].items()}
            if len(set(values.values())) == 1 and values.keys() >= learning:
                shared.append([Cell(key), *map(Cell, set(values.values()))])
            else:
                by_method.append([Cell(key), *(Cell(values.get(name, MISSING)) for name in methods)])
    titles = "Settings that all methods share", "Settings of each method"
    headers = ["setting", "value"], ["setting", *methods]
    tables = []
    for title, header, rows in zip(titles, headers, (shared, by_method), strict=True):
        within = [row[0].text for row in rows if row[0].text in differing]
        note = f"From the config.yaml of {len(configs)} finished runs."
        if within:
            note += f" Runs of one method differ in {', '.join(within)}; the runs with each value are in brackets."
        tables += [Table(title, header, rows, note)] if rows else []
    return tables


def run_settings(run: Run) -> dict[str, str]:
    """A run's settings as text, without those that it does not use; the settings of its method become TRAINER.*.KEY."""
    section = f"TRAINER.{run.variant.trainer.section()}."
    unused = RUN_KEYS + (() if run.variant.learns else TRAIN_ONLY)
    config = flatten(read_yaml(run.folder / "config.yaml"))
    return {
        key.replace(section, "TRAINER.*."): str(value) or "''"
        for key, value in config.items()
        if not key.startswith(unused)
    }


def format_setting(values: Mapping[Run, str]) -> str:
    """One setting of a method: the common value, or each value with the runs that use it."""
    runs_of = defaultdict(list)
    for run, value in values.items():
        runs_of[value].append(run)
    for axis in ("protocol", "dataset", "shots", "classes", "seed") if len(runs_of) > 1 else ():
        names = [dict.fromkeys(str(getattr(run, axis)) for run in runs) for runs in runs_of.values()]
        if len(set().union(*names)) == sum(map(len, names)):  # this axis alone decides the value
            return "; ".join(f"{value} ({axis} {', '.join(of)})" for value, of in zip(runs_of, names, strict=True))
    return with_counts({value: len(runs) for value, runs in runs_of.items()})


def with_counts(values: Mapping[str, int]) -> str:
    """A value, or several with the number of runs that have each."""
    return "; ".join(f"{value} (n={count})" if len(values) > 1 else value for value, count in values.items())


def versions(results: Iterable[dict]) -> Table:
    """The devices and package versions of the finished runs, and when the first and the last of them ended."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for run in results:
        for name, value in ({"device": run.get("device")} | run.get("versions", {})).items():
            counts[name][str(value or MISSING)] += 1
    rows = [[Cell(name), Cell(with_counts(dict(values.most_common())))] for name, values in counts.items()]
    dates = sorted(run["date"].replace("T", " ").replace("+00:00", " UTC") for run in results if "date" in run)
    if dates:
        rows.append([Cell("finished"), Cell(" to ".join(dict.fromkeys((dates[0], dates[-1]))))])
    return Table("Versions and devices", ["name", "of finished runs"], rows)
