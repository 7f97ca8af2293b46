"""Seconds of runs of several seeds alone and together, and of a study with and without what runs can share.

    python benchmarks/study_time.py --backbone small --methods MPL CoOp --seeds 1 3 6 --json study_time.json

Each measurement is a training of some epochs and a test on a drawn dataset, as train.py executes it, in one process
that has loaded its libraries before. Both ways take turns; reported are medians, and the ratio of alone to together.

    python benchmarks/study_time.py --study studies/small.yaml --share cache together --json study_time.json

The study is executed without, with each, and with all of what `--share` names, in turns and in new folders.
"""

import argparse
import io
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from datetime import date
from pathlib import Path

if __name__ == "__main__":  # the project in place of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from common.start import ROOT, required_packages

with required_packages():
    import torch
    import yaml

    from experiments import run
    from experiments.arguments import at_least
    from experiments.configs import CONFIGS, config_folder, read_yaml
    from experiments.protocols import recipe
    from trainers import methods

DATASET = "small_objects"  # draws itself
SHARED = {"cache": "cache", "together": "seeds", "bf16": ""}  # the keys of a study that save time, and their values


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--backbone", default="small", help="small, ViT-B/16, ..., or random: ViT-B/16 of random weights"
    )
    parser.add_argument("--methods", nargs="+", default=["MPL", "CoOp"], choices=list(methods()), metavar="METHOD")
    parser.add_argument("--seeds", type=at_least(1), nargs="+", default=[1, 3, 6], help="how many at a time")
    parser.add_argument("--epochs", type=at_least(1), default=4)
    parser.add_argument("--shots", type=at_least(1), default=16)
    parser.add_argument("--rounds", type=at_least(1), default=3, help="how often both ways take turns")
    parser.add_argument("--threads", type=at_least(1), default=1)
    parser.add_argument("--study", type=Path, help="measure this study instead")
    parser.add_argument("--share", nargs="+", default=["cache", "together"], choices=list(SHARED))
    parser.add_argument("--workers", type=at_least(1), help="processes of the study")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the datasets")
    parser.add_argument("--json", type=Path, help="write the records there as well")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings of the runs to override")
    return parser.parse_intermixed_args(argv)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        function()
    return time.perf_counter() - start


def in_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each way; they take turns, so that what else the machine does meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(seconds(way))
    return {name: statistics.median(measured) for name, measured in times.items()}


def arguments_of(method: str, args: argparse.Namespace, backbone: str, folder: Path) -> list[str]:
    """The command line of train.py without seeds; each call has an output folder of its own."""
    settings = recipe(method, "few_shot", backbone=backbone).cfg
    size = 64 if backbone == "small" else 224
    argv = ["--trainer", method, "--backbone", backbone, "--root", args.root, "--output-dir", folder / "seed{seed}"]
    argv += ["--dataset-config-file", CONFIGS / f"datasets/{DATASET}.yaml"]
    argv += ["--config-file", config_folder(method) / f"{settings}.yaml", "INPUT.SIZE", (size, size)]
    argv += ["DATASET.NUM_SHOTS", args.shots, "OPTIM.MAX_EPOCH", args.epochs, "DATALOADER.NUM_WORKERS", 0, *args.opts]
    return [str(item) for item in argv]


def train(argv: list[str], seeds: range, together: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = argv.index("--output-dir") + 1
        for each in [seeds] if together else [[seed] for seed in seeds]:
            path = Path(folder, argv[place])
            own = str(path if len(each) > 1 else path.with_name(f"seed{each[0]}"))
            run.main([*argv[:place], own, "--seed", *map(str, each), *argv[place + 1 :]])


def measure(method: str, count: int, args: argparse.Namespace, backbone: str) -> dict:
    """One record: `count` seeds of a method one after another, and together."""
    argv, seeds = arguments_of(method, args, backbone, Path("run")), range(1, count + 1)
    ways = {"alone": lambda: train(argv, seeds, False), "together": lambda: train(argv, seeds, True)}
    found = in_turns(ways, args.rounds)
    record = {"what": "runs", "method": method, "backbone": args.backbone, "seeds": count}
    return record | {f"{way}_s": found[way] for way in ways} | {"ratio": found["alone"] / found["together"]}


def measure_study(args: argparse.Namespace) -> list[dict]:
    """One record for each way to execute the study; `alone_s` is without anything shared."""
    shares: list[tuple[str, ...]] = [
        (),
        *((name,) for name in args.share),
        *([tuple(args.share)] if args.share[1:] else []),
    ]
    content = read_yaml(args.study)
    for key in ("cache", "together"):
        content.pop(key, None)

    def execute(names: tuple[str, ...]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            own = {"output": folder, "root": str(args.root)} | {name: SHARED[name] for name in names if SHARED[name]}
            own |= {"cache": f"{folder}/cache"} if "cache" in names else {}
            own |= (
                {"trainers": {name: in_bf16(name, of) for name, of in content["trainers"].items()}}
                if "bf16" in names
                else {}
            )
            file = Path(folder, "study.yaml")
            file.write_text(yaml.safe_dump(json.loads(json.dumps(content)) | own))
            workers = ["--workers", str(args.workers)] if args.workers else []
            command = [sys.executable, "tools/study.py", "run", str(file), *workers]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"error: the study failed: {done.stderr.strip().splitlines()[-1]}")

    found = in_turns({" + ".join(names): lambda names=names: execute(names) for names in shares}, args.rounds)
    return [
        {"what": f"study with {name}", "method": "all", "backbone": args.study.stem, "seeds": None}
        | {"alone_s": found[""], "together_s": found[name], "ratio": found[""] / found[name]}
        for name in found
        if name
    ]


def in_bf16(name: str, entry: object) -> dict:
    """The entry of a study's trainer, in PREC bf16."""
    entry = entry if isinstance(entry, dict) else {"config": entry}
    section = methods()[entry.get("trainer", name)].section()
    return entry | {"overrides": entry.get("overrides", {}) | {f"TRAINER.{section}.PREC": "bf16"}}


def table(records: list[dict]) -> str:
    """A Markdown table of the records."""
    rows = ["| what | method | backbone | seeds | alone s | together s | ratio |", "|" + " --- |" * 7]
    for each in records:
        seeds = "" if each["seeds"] is None else each["seeds"]
        numbers = f"{each['alone_s']:.2f} | {each['together_s']:.2f} | {each['ratio']:.2f}"
        rows.append(f"| {each['what']} | {each['method']} | {each['backbone']} | {seeds} | {numbers} |")
    return "\n".join(rows)


def machine(threads: int) -> str:
    """The day and the machine, for the line above a table."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, {threads} threads"
    return f"{date.today()}, {device}, torch {torch.__version__}"


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        backbone = args.backbone
        if backbone == "random" and not args.study:
            from clip.random_weights import random_clip

            backbone = f"{folder}/vit_b16.pt"
            torch.save(random_clip("ViT-B-16").state_dict(), backbone)
        records = measure_study(args) if args.study else []
        for method in [] if args.study else args.methods:
            seconds(lambda method=method: train(arguments_of(method, args, backbone, Path("run")), range(1, 2), False))
            records += [measure(method, count, args, backbone) for count in args.seeds]
        print(machine(args.threads), table(records), sep="\n\n")
        if args.json:
            args.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
