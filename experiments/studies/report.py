"""A study as one page to keep and pass on: its figures, pictures, settings, versions and failures.

All of it is in one file, which loads nothing and runs nothing. How it looks is in report.html.
"""

import shlex
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..configuration import flatten
from . import plots
from .progress import Progress
from .render import MISSING, Cell, Table, layout
from .spec import Run
from .tables import Summary

# Settings that always have a row; others have one where runs of one method differ in them.
SHOWN = ("TRAINER.", "OPTIM.", "DATALOADER.TRAIN_X.BATCH_SIZE", "MODEL.BACKBONE.NAME")
SHOWN += tuple(
    f"INPUT.{key}" for key in ("SIZE", "INTERPOLATION", "TRANSFORMS", "RRCROP_SCALE", "PIXEL_MEAN", "PIXEL_STD")
)
LEARNING = ("OPTIM.", "DATALOADER.TRAIN_X.")  # of no meaning where nothing is learned
# What a study varies from run to run: the tables tell it.
VARIED = ("DATASET.NAME", "DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES", "OUTPUT_DIR", "SEED")


def page(summary: Summary, progress: Progress, file: Path) -> str:
    """The page, as HTML.

    Args:
        file: the study's.
    """
    source = file.read_text()
    comment = takewhile(lambda line: line.startswith("#"), source.splitlines())
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        name=file.stem,
        about=" ".join(line.strip("# ") for line in comment),
        made=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        progress=progress,
        warnings=summary.warnings,
        results=layout(summary),
        pictures=pictures(summary),
        commands={run: shlex.join(["python", "train.py", *run.arguments]) for run in progress.failed},
        unfinished=unfinished(progress),
        settings=settings(progress),
        versions=versions(progress.results.values()),
        source=source,
    )


def pictures(summary: Summary) -> list[tuple[str, str]]:
    """What each picture shows, and an address that holds all of it, as SVG."""
    with TemporaryDirectory() as folder:
        files = [file for file in plots.draw(summary, Path(folder)) if file.suffix == ".svg"]
        coded = [(file.stem, b64encode(file.read_bytes()).decode()) for file in files]
    return [(getattr(plots, name).__doc__, f"data:image/svg+xml;base64,{code}") for name, code in coded]


def unfinished(progress: Progress) -> Table | None:
    """What has become of the runs of every protocol and method that lacks some."""
    states = ("done", "running", "failed", "left")
    counts = defaultdict(Counter)
    for state in states:
        for run in getattr(progress, state):
            counts[run.protocol, run.variant.name][state] += 1
    rows = [
        [Cell(text) for text in (*names, *(str(count[state]) for state in states))]
        for names, count in counts.items()
        if count["done"] < count.total()
    ]
    return Table("By protocol and method", ["protocol", "method", *states], rows) if rows else None


def settings(progress: Progress) -> list[Table]:
    """The settings that matter, as finished runs had them: those that all methods share, then those of each."""
    configs = {run: as_run(run) for run in progress.done if (run.folder / "config.yaml").is_file()}
    found = defaultdict(lambda: defaultdict(dict))  # key -> method -> run -> value
    for run, config in configs.items():
        for key, value in config.items():
            found[key][run.variant.name][run] = value
    learning = {run.variant.name for run in configs if run.variant.learns}
    methods = [variant.name for variant in progress.study.variants if variant.name in found["TRAINER.NAME"]]
    differing = [key for key in sorted(found) if any(len(set(runs.values())) > 1 for runs in found[key].values())]
    shared, own = [], []
    for key in sorted(found):
        if key in differing or key.startswith(SHOWN):
            values = {name: told(runs) for name, runs in found[key].items()}
            if len(set(values.values())) == 1 and values.keys() >= learning:
                shared.append([Cell(key), *map(Cell, set(values.values()))])
            else:
                own.append([Cell(key), *(Cell(values.get(name, MISSING)) for name in methods)])
    titles = "Settings that all methods share", "Settings of each method"
    headers = ["setting", "value"], ["setting", *methods]
    tables = []
    for title, header, rows in zip(titles, headers, (shared, own), strict=True):
        within = [row[0].text for row in rows if row[0].text in differing]
        where = f" Runs of one method differ in {', '.join(within)}: where is in brackets." if within else ""
        note = f"From the config.yaml of {len(configs)} finished runs.{where}"
        tables += [Table(title, header, rows, note)] if rows else []
    return tables


def as_run(run: Run) -> dict[str, str]:
    """A run's settings as text, those that mean something to it; its method's own are called TRAINER.*.KEY for all."""
    section = f"TRAINER.{run.variant.trainer.section()}."
    unused = VARIED + (() if run.variant.learns else LEARNING)
    config = flatten(yaml.safe_load((run.folder / "config.yaml").read_text()))
    return {
        key.replace(section, "TRAINER.*."): str(value) or "''"
        for key, value in config.items()
        if not key.startswith(unused)
    }


def told(values: Mapping[Run, str]) -> str:
    """One setting in the runs of a method: its value, or each with where it holds."""
    alike = defaultdict(list)
    for run, value in values.items():
        alike[value].append(run)
    for axis in ("protocol", "dataset", "shots", "classes", "seed") if len(alike) > 1 else ():
        places = [dict.fromkeys(str(getattr(run, axis)) for run in runs) for runs in alike.values()]
        if len(set().union(*places)) == sum(map(len, places)):  # it alone decides the value
            named = zip(alike, places, strict=True)
            return "; ".join(f"{value} ({axis} {', '.join(at)})" for value, at in named)
    return counted({value: len(runs) for value, runs in alike.items()})


def counted(values: Mapping[str, int]) -> str:
    """A value, or several with the number of runs that had each."""
    return "; ".join(f"{value} (n={count})" if len(values) > 1 else value for value, count in values.items())


def versions(results: Iterable[dict]) -> Table:
    """What finished runs ran on, and when the first and the last of them ended."""
    counts = defaultdict(Counter)
    for run in results:
        for what, value in ({"device": run.get("device")} | run.get("versions", {})).items():
            counts[what][str(value or MISSING)] += 1
    rows = [[Cell(what), Cell(counted(dict(values.most_common())))] for what, values in counts.items()]
    dates = sorted(run["date"].replace("T", " ").replace("+00:00", " UTC") for run in results if "date" in run)
    if dates:
        rows.append([Cell("finished"), Cell(" to ".join(dict.fromkeys((dates[0], dates[-1]))))])
    return Table("Versions and devices", ["what", "of finished runs"], rows)
