"""Seconds of a study without and with a shared cache, and in bf16.

    python benchmarks/study_time.py --study studies/small.yaml --share cache bf16 --json study_time.json

The study is executed without, with each, and with all of what `--share` names, in turns and in new folders. It reports
medians, and their ratios to the study without.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__":  # the project instead of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import yaml

from benchmarks import measuring
from common.start import ROOT, at_least
from experiments.configs import read_yaml
from trainers import methods


def records(args: argparse.Namespace) -> Iterator[dict]:
    """One record for each way to execute the study; `plain_s` is without anything shared, in the study's precision."""
    shared: list[tuple[str, ...]] = [(), *((name,) for name in args.share), tuple(args.share)]
    ways = {" + ".join(names): partial(execute, args, names) for names in shared}
    found = measuring.compared(ways, args.rounds, torch.device("cpu"), warm_up=False)
    plain, _ = found.pop("")
    for name, (seconds, ratio) in found.items():
        yield {"study": args.study.stem, "with": name, "plain_s": plain, "with_s": seconds, "ratio": ratio}


def execute(args: argparse.Namespace, names: tuple[str, ...]) -> None:
    """Execute the study in a new folder, with what is named; ends the program if the study fails."""
    content = {key: value for key, value in read_yaml(args.study).items() if key != "cache"}
    with TemporaryDirectory() as folder:
        content |= {"output": folder, "root": str(args.root)} | (
            {"cache": f"{folder}/cache"} if "cache" in names else {}
        )
        if "bf16" in names:
            content["trainers"] = {name: in_bf16(name, of) for name, of in content["trainers"].items()}
        file = Path(folder, "study.yaml")
        file.write_text(yaml.safe_dump(json.loads(json.dumps(content))))
        workers = ["--workers", str(args.workers)] if args.workers else []
        command = [sys.executable, "tools/study.py", "run", str(file), *workers]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"error: the study failed: {done.stderr.strip().splitlines()[-1]}")


def in_bf16(name: str, entry: object) -> dict:
    """The entry of a study's trainer, in PREC bf16."""
    entry = entry if isinstance(entry, dict) else {"config": entry}
    section = methods()[entry.get("trainer", name)].section()
    return entry | {"overrides": entry.get("overrides", {}) | {f"TRAINER.{section}.PREC": "bf16"}}


def main(argv: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__, "rounds", "json", rounds=3)
    parser.add_argument("--study", type=Path, default=ROOT / "studies/small.yaml", help="a study file")
    parser.add_argument("--share", nargs="+", default=["cache"], choices=["cache", "bf16"])
    parser.add_argument("--workers", type=at_least(1), help="processes of the study")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the datasets")
    args = parser.parse_args(argv)
    measuring.show(records(args), args.json, torch.get_num_threads())


if __name__ == "__main__":
    main()
