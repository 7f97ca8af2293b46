"""Side-by-side reruns of methods, datasets and seeds: `python tools/study.py run studies/small.yaml`.

`run` works off what is left of a study, several runs at a time: as tasks of Ray where that is installed, on this
machine or on a cluster (docs/cluster.md), and else in processes of this machine. `status` says what is done, running,
failed and left, and how long that will take; `tables` prints what is there and writes it to
OUTPUT/studies/<name>/tables.{md,tex,csv,json}; `plots` draws it, as PNG and SVG in the same folder; `report` puts it
all on one page there, report.html.

A study file's keys are those of `tools.runs.Study`; its `trainers` are a mapping from names to YAMLs in
configs/trainers/, or to {trainer, config, cross_dataset, overrides, datasets}, of which cross_dataset is that
protocol's YAML, where it differs, and datasets a mapping from some of them to overrides of their own.
"""

import argparse
import dataclasses
import difflib
import json
import os
import shlex
import sys
from pathlib import Path

import torch
import yaml

import trainers
from common.errors import UsageError
from common.files import write_text
from common.start import add_common_options

from ..arguments import at_least
from ..configuration import parse_arguments, setup_cfg
from .cluster import Cluster, available
from .executor import Place, Processes, execute, prepare
from .plots import draw
from .progress import Progress, collect
from .render import latex, layout, markdown
from .report import page
from .spec import CONFIGS, Study, Variant
from .tables import Summary

PROTOCOLS = ("base2new", "cross_dataset", "few_shot")
SET_BY_STUDY = {  # settings, and the keys of a study that say them
    "TRAINER.NAME": "trainer",
    "OUTPUT_DIR": "output",
    "SEED": "seeds",
    "DATASET.NAME": "datasets",
    "DATASET.ROOT": "root",
    "DATASET.NUM_SHOTS": "shots",
    "DATASET.SUBSAMPLE_CLASSES": "protocols",
}


def choose(file: Path, what: str, name, known) -> str:
    """The name, if it is one of those known."""
    if name not in known:
        near = difflib.get_close_matches(str(name), map(str, known), 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(map(str, known))}"
        raise UsageError(f"{file}: there is no {what} {name!r}: {hint}")
    return name


def load(file: Path) -> Study:
    """A study from its file.

    Raises:
        UsageError: it can't be read, or has an unknown key, protocol, trainer, setting or dataset.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {file} ({error.strerror}): give one of studies/*.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{file} holds no settings: see studies/small.yaml")
    keys = [field.name for field in dataclasses.fields(Study) if field.name != "variants"] + ["trainers"]
    for key in content:
        choose(file, "key", key, keys)
    for key in ("datasets", "targets", "protocols", "seeds", "shots"):
        if key in content:
            content[key] = tuple(content[key]) if isinstance(content[key], list) else (content[key],)
    check_numbers(file, content)
    content = {"datasets": (), "targets": (), "source": "", "protocols": ("base2new",)} | content
    for protocol in content["protocols"]:
        choose(file, "protocol", protocol, PROTOCOLS)
    if not isinstance(content.get("trainers"), dict):
        raise UsageError(f"{file} names no trainers: see studies/small.yaml")
    if not any(content["datasets"]) and content["protocols"] != ("cross_dataset",):
        raise UsageError(f"{file} names no datasets: see studies/small.yaml")
    if "cross_dataset" in content["protocols"] and not (content["source"] and content["targets"]):
        raise UsageError(f"{file}: cross_dataset needs a source, such as imagenet, and targets")
    for dataset in (*content["datasets"], *content["targets"], *filter(None, [content["source"]])):
        choose(file, "dataset", dataset, known_datasets())
    variants = tuple(variant(file, name, value) for name, value in content.pop("trainers").items())
    paths = {key: Path(content[key]).expanduser() for key in ("root", "output") if key in content}
    study = Study(variants, **content | paths)
    folders, settings = set(), {}
    for run in (run for chain in study.chains() for run in chain):
        settings[run.protocol, run.variant.name] = run
        if run.folder in folders:
            raise UsageError(
                f"{file} has the run of {run.folder} twice: leave one out, or give it overrides of its own"
            )
        folders.add(run.folder)
    for run in settings.values():
        for overrides in ((), *run.variant.own.values()):
            try:
                setup_cfg(parse_arguments([*run.arguments, *overrides]))
            except ValueError as error:
                raise UsageError(f"{file}: {run.variant.name}: {error}") from None
    return study


def check_numbers(file: Path, content: dict) -> None:
    for key, kind, least in (("seeds", int, 0), ("shots", int, 1), ("cpus", int, 1), ("gpus", int | float, 0)):
        values = content.get(key, ())
        for value in values if isinstance(values, tuple) else [values]:
            if not isinstance(value, kind) or isinstance(value, bool) or value < least:
                numbers = "whole numbers" if kind is int else "numbers"
                raise UsageError(f"{file}: {key} cannot be {value!r}: give {numbers} from {least}")


def known_datasets() -> list[str]:
    return sorted(path.stem for path in (CONFIGS / "datasets").glob("*.yaml"))


def pairs(file: Path, name: str, method: str, overrides: dict) -> tuple[str, ...]:
    """KEY, VALUE, ... of overrides that are about the method's runs."""
    if not isinstance(overrides, dict):
        raise UsageError(f"{file}: overrides of {name} cannot be {overrides!r}: give a mapping of KEY: VALUE")
    for key in map(str, overrides):
        group, _, rest = key.partition(".")
        if key in SET_BY_STUDY:
            raise UsageError(f"{file}: {name} cannot override {key}: the study's own key is {SET_BY_STUDY[key]}")
        if group == "TRAINER" and rest.split(".")[0] != trainers.methods()[method].section():
            raise UsageError(f"{file}: {name} cannot override {key}: it is no setting of {method}")
    return tuple(str(item) for pair in overrides.items() for item in pair)


def variant(file: Path, name: str, value: str | dict) -> Variant:
    """`NAME: config`, or `NAME: {trainer, config, cross_dataset, overrides, datasets}`."""
    settings = value if isinstance(value, dict) else {"config": value}
    for key in settings:
        choose(file, f"key of {name}", key, ("trainer", "config", "cross_dataset", "overrides", "datasets"))
    method = choose(file, "trainer", settings.get("trainer", name), trainers.methods())
    own = settings.get("datasets", {})
    if not isinstance(own, dict):
        raise UsageError(f"{file}: datasets of {name} cannot be {own!r}: give a mapping from some of them to overrides")
    for dataset in own:
        choose(file, "dataset", dataset, known_datasets())
    configs = [str(settings[key]) for key in ("config", "cross_dataset") if key in settings]
    if "config" not in settings:
        raise UsageError(f"{file}: {name} has no config: see studies/small.yaml")
    chosen = Variant(
        *(name, method, *configs),
        overrides=pairs(file, name, method, settings.get("overrides", {})),
        own={dataset: pairs(file, name, method, overrides) for dataset, overrides in own.items()},
    )
    known = sorted(path.stem for path in chosen.config_file.parent.glob("*.yaml"))
    for config in configs:
        choose(file, f"setting of {name},", config, known)
    return chosen


def run(study: Study, args: argparse.Namespace) -> None:
    chains = study.chains()
    if args.dry_run:
        for task in (task for chain in chains for task in chain):
            print(shlex.join(["python", "train.py", *task.arguments]))
        return
    where = place(study, args)
    prepare(study)
    print(Progress(study))  # or what stands against it, before anything is begun
    failed = execute(chains, where, args.file.stem)
    if failed:
        count = "1 run has" if len(failed) == 1 else f"{len(failed)} runs have"
        print(f"\n{count} failed:", *(f"{task.folder}: {why}" for task, why in failed.items()), sep="\n")
        print("The same command tries again, and goes on with what is left")
        sys.exit(1)


def place(study: Study, args: argparse.Namespace) -> Place:
    """Ray where it is installed or asked for; processes of this machine where it is not, or their number is given."""
    if args.address and args.workers:
        raise UsageError("--workers is for this machine alone, --address for a cluster: leave out one")
    if args.address or (available() and not args.workers):
        return Cluster(args.address, study.cpus, study.gpus)
    one_after_another = 1 if torch.cuda.is_available() else min(4, os.cpu_count() // study.cpus or 1)
    return Processes(args.workers or one_after_another, study.cpus)


def status(study: Study, args: argparse.Namespace) -> None:
    progress = Progress(study)
    print(progress)
    for task in progress.running:
        print(f"running: {task.folder}")
    for task, error in progress.failed.items():
        print(f"failed: {task.folder}: {error}")


def summarise(study: Study, args: argparse.Namespace) -> tuple[Summary, Path]:
    """The figures of what is done, and the folder for what is made of them."""
    results = collect(study)
    if not results:
        raise UsageError(f"no run of this study is done yet: python tools/study.py run {args.file}")
    summary = Summary(study, results, args.ci95)
    for warning in summary.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    folder = study.output / "studies" / args.file.stem
    folder.mkdir(parents=True, exist_ok=True)
    return summary, folder


def tables(study: Study, args: argparse.Namespace) -> None:
    summary, folder = summarise(study, args)
    made = layout(summary)
    texts = {
        "md": markdown(made),
        "tex": latex(made),
        "csv": summary.cells.to_csv(index=False),
        "json": json.dumps(summary.records(), indent=1) + "\n",
    }
    for kind, text in texts.items():
        write_text(folder / f"tables.{kind}", text)
    print(texts["md"])
    print(f"Written: {folder}/tables.{{{','.join(texts)}}}")


def plots(study: Study, args: argparse.Namespace) -> None:
    summary, folder = summarise(study, args)
    for file in draw(summary, folder):
        print(f"Written: {file}")


def report(study: Study, args: argparse.Namespace) -> None:
    summary, folder = summarise(study, args)
    file = folder / "report.html"
    write_text(file, page(summary, Progress(study, summary.results), args.file))
    print(f"Written: {file}")


def main(argv: list[str] | None = None) -> None:
    commands = {"run": run, "status": status, "tables": tables, "plots": plots, "report": report}
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=" ".join(__doc__.split("\n\n", 1)[1].split())
    )
    parser.add_argument("command", choices=commands)
    parser.add_argument("file", type=Path, help="a study, such as studies/small.yaml")
    parser.add_argument("--address", help="run: of a Ray cluster, such as auto or HOST:6379 (docs/cluster.md)")
    parser.add_argument("--workers", type=at_least(1), help="run: without Ray, so many at a time on this machine")
    parser.add_argument("--dry-run", action="store_true", help="run: print the commands instead")
    parser.add_argument("--ci95", action="store_true", help="tables, plots, report: 95%% intervals, not deviations")
    add_common_options(parser)
    args = parser.parse_args(argv)
    commands[args.command](load(args.file), args)
