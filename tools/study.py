"""Side-by-side reruns of methods, datasets and seeds: `python -m tools.study run studies/small.yaml`.

`run` works off what is left of a study, several runs at a time; `status` says how much that is; `tables` prints what is
there and writes it to OUTPUT/studies/<name>/tables.{md,tex,csv,json}; `plots` draws it, as PNG and SVG in the same
folder. A study file's keys are those of `tools.runs.Study`; its `trainers` are a mapping from names to YAMLs in
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

import yaml
from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset

import train
from tools.base2new import read_results
from tools.execute import execute
from tools.plots import draw
from tools.render import latex, layout, markdown
from tools.runs import CONFIGS, METHODS, Study, Variant
from tools.tables import Summary, collect

PROTOCOLS = ("base2new", "cross_dataset", "few_shot")


class StudyError(ValueError):
    """A study file that cannot be (one line)."""

    one_line = True


def choose(file: Path, what: str, name, known) -> str:
    """The name, if it is one of those known."""
    if name not in known:
        near = difflib.get_close_matches(str(name), map(str, known), 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(map(str, known))}"
        raise StudyError(f"{file}: there is no {what} {name!r}: {hint}")
    return name


def load(file: Path) -> Study:
    """A study from its file.

    Raises:
        StudyError: it can't be read, or has an unknown key, protocol, trainer, setting or dataset.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise StudyError(f"cannot read {file} ({error.strerror}): give one of studies/*.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise StudyError(f"{file} holds no settings: see studies/small.yaml")
    keys = [field.name for field in dataclasses.fields(Study) if field.name != "variants"] + ["trainers"]
    for key in content:
        choose(file, "key", key, keys)
    for key in ("datasets", "targets", "protocols", "seeds", "shots"):
        if key in content:
            content[key] = tuple(content[key]) if isinstance(content[key], list) else (content[key],)
    content = {"datasets": (), "targets": (), "source": "", "protocols": ("base2new",)} | content
    for protocol in content["protocols"]:
        choose(file, "protocol", protocol, PROTOCOLS)
    if not isinstance(content.get("trainers"), dict):
        raise StudyError(f"{file} names no trainers: see studies/small.yaml")
    if not any(content["datasets"]) and content["protocols"] != ("cross_dataset",):
        raise StudyError(f"{file} names no datasets: see studies/small.yaml")
    if "cross_dataset" in content["protocols"] and not (content["source"] and content["targets"]):
        raise StudyError(f"{file}: cross_dataset needs a source, such as imagenet, and targets")
    for dataset in (*content["datasets"], *content["targets"], *filter(None, [content["source"]])):
        choose(file, "dataset", dataset, known_datasets())
    variants = tuple(variant(file, name, value) for name, value in content.pop("trainers").items())
    paths = {key: Path(content[key]).expanduser() for key in ("root", "output") if key in content}
    study = Study(variants, **content | paths)
    folders = set()
    for run in (run for chain in study.chains() for run in chain):
        if run.folder in folders:
            raise StudyError(
                f"{file} has the run of {run.folder} twice: leave one out, or give it overrides of its own"
            )
        folders.add(run.folder)
    return study


def known_datasets() -> list[str]:
    return sorted(path.stem for path in (CONFIGS / "datasets").glob("*.yaml"))


def pairs(overrides: dict) -> tuple[str, ...]:
    return tuple(str(item) for pair in overrides.items() for item in pair)


def variant(file: Path, name: str, value: str | dict) -> Variant:
    """`NAME: config`, or `NAME: {trainer, config, cross_dataset, overrides, datasets}`."""
    settings = value if isinstance(value, dict) else {"config": value}
    for key in settings:
        choose(file, f"key of {name}", key, ("trainer", "config", "cross_dataset", "overrides", "datasets"))
    method = choose(file, "trainer", settings.get("trainer", name), ("ZeroshotCLIP", *METHODS))
    own = settings.get("datasets", {})
    for dataset in own:
        choose(file, "dataset", dataset, known_datasets())
    configs = [str(settings[key]) for key in ("config", "cross_dataset") if key in settings]
    if "config" not in settings:
        raise StudyError(f"{file}: {name} has no config: see studies/small.yaml")
    chosen = Variant(
        *(name, method, *configs),
        overrides=pairs(settings.get("overrides", {})),
        own={dataset: pairs(overrides) for dataset, overrides in own.items()},
    )
    known = sorted(path.stem for path in chosen.config_file.parent.glob("*.yaml"))
    for config in configs:
        choose(file, f"setting of {name},", config, known)
    return chosen


def prepare(study: Study) -> None:
    """Build every dataset once: what is missing is said before the first run, and drawn sets are drawn."""
    others = [study.source, *study.targets] if "cross_dataset" in study.protocols else []
    for dataset in dict.fromkeys([*study.datasets, *others]):
        cfg = get_cfg_default()
        train.extend_cfg(cfg)
        cfg.merge_from_file(str(CONFIGS / f"datasets/{dataset}.yaml"))
        cfg.merge_from_list(["DATASET.ROOT", str(study.root)])
        build_dataset(cfg)


def run(study: Study, args: argparse.Namespace) -> None:
    chains = study.chains()
    if args.dry_run:
        for task in (task for chain in chains for task in chain):
            print(shlex.join(["python", "train.py", *task.arguments]))
        return
    prepare(study)
    failed = execute(chains, args.workers, Path(args.file).stem)
    if failed:
        print(
            f"\n{len(failed)} runs have failed:", *(f"{task.folder}: {why}" for task, why in failed.items()), sep="\n"
        )
        sys.exit(1)


def status(study: Study, args: argparse.Namespace) -> None:
    tasks = [task for chain in study.chains() for task in chain]
    done = sum(read_results(task.folder) is not None for task in tasks)
    print(f"{done} of {len(tasks)} runs are done, {len(tasks) - done} are left")


def summarise(study: Study, args: argparse.Namespace) -> tuple[Summary, Path]:
    """The figures of what is done, and the folder for what is made of them."""
    runs = collect(study)
    if runs.empty:
        raise StudyError(f"no run of this study is done yet: python -m tools.study run {args.file}")
    summary = Summary(study, runs, args.ci95)
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
        train.write_whole(folder / f"tables.{kind}", text)
    print(texts["md"])
    print(f"Written: {folder}/tables.{{{','.join(texts)}}}")


def plots(study: Study, args: argparse.Namespace) -> None:
    summary, folder = summarise(study, args)
    for file in draw(summary, folder):
        print(f"Written: {file}")


def main() -> None:
    commands = {"run": run, "status": status, "tables": tables, "plots": plots}
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=" ".join(__doc__.split("\n\n", 1)[1].split())
    )
    parser.add_argument("command", choices=commands)
    parser.add_argument("file", type=Path, help="a study, such as studies/small.yaml")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count()), help="run: runs at a time")
    parser.add_argument("--dry-run", action="store_true", help="run: print the commands instead")
    parser.add_argument("--ci95", action="store_true", help="tables, plots: 95%% intervals in place of deviations")
    args = parser.parse_args()
    commands[args.command](load(args.file), args)


if __name__ == "__main__":
    train.run(main)
