"""Seconds of a study without and with a shared cache, and in bf16.

    python benchmarks/study_time.py --study studies/small.yaml --share cache bf16 --json study_time.json

The study is executed without, with each, and with all of what `--share` names, in turns and in new folders. It reports
medians, and their ratios to the study without.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

if __name__ == "__main__":  # the project in place of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from common.start import ROOT, at_least, required_packages

with required_packages():
    import torch
    import yaml

    from experiments.configs import read_yaml
    from trainers import methods


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, default=ROOT / "studies/small.yaml", help="a study file")
    parser.add_argument("--share", nargs="+", default=["cache"], choices=["cache", "bf16"])
    parser.add_argument("--rounds", type=at_least(1), default=3, help="how often all ways take turns")
    parser.add_argument("--workers", type=at_least(1), help="processes of the study")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the datasets")
    parser.add_argument("--json", type=Path, help="write the records there as well")
    return parser.parse_args(argv)


def in_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each way; they take turns, so that what else the machine does meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(measured) for name, measured in times.items()}


def measure_study(args: argparse.Namespace) -> list[dict]:
    """One record for each way to execute the study; `plain_s` is without anything shared, in the study's precision."""
    ways: list[tuple[str, ...]] = [(), *((name,) for name in args.share)]
    if args.share[1:]:
        ways.append(tuple(args.share))
    content = read_yaml(args.study)
    content.pop("cache", None)

    def execute(names: tuple[str, ...]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            own = {"output": folder, "root": str(args.root)}
            if "cache" in names:
                own["cache"] = f"{folder}/cache"
            if "bf16" in names:
                own["trainers"] = {name: in_bf16(name, of) for name, of in content["trainers"].items()}
            file = Path(folder, "study.yaml")
            file.write_text(yaml.safe_dump(json.loads(json.dumps(content)) | own))
            workers = ["--workers", str(args.workers)] if args.workers else []
            command = [sys.executable, "tools/study.py", "run", str(file), *workers]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"error: the study failed: {done.stderr.strip().splitlines()[-1]}")

    found = in_turns({" + ".join(names): lambda names=names: execute(names) for names in ways}, args.rounds)
    plain = found.pop("")
    return [
        {"study": args.study.stem, "with": name, "plain_s": plain, "with_s": seconds, "ratio": plain / seconds}
        for name, seconds in found.items()
    ]


def in_bf16(name: str, entry: object) -> dict:
    """The entry of a study's trainer, in PREC bf16."""
    entry = entry if isinstance(entry, dict) else {"config": entry}
    section = methods()[entry.get("trainer", name)].section()
    return entry | {"overrides": entry.get("overrides", {}) | {f"TRAINER.{section}.PREC": "bf16"}}


def table(records: list[dict]) -> str:
    """A Markdown table of the records."""
    rows = ["| study | with | without, s | with, s | ratio |", "|" + " --- |" * 5]
    for each in records:
        numbers = f"{each['plain_s']:.2f} | {each['with_s']:.2f} | {each['ratio']:.2f}"
        rows.append(f"| {each['study']} | {each['with']} | {numbers} |")
    return "\n".join(rows)


def machine(threads: int) -> str:
    """The day and the machine, for the line above a table."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, {threads} threads"
    return f"{date.today()}, {device}, torch {torch.__version__}"


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    records = measure_study(args)
    print(machine(torch.get_num_threads()), table(records), sep="\n\n")
    if args.json:
        args.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
