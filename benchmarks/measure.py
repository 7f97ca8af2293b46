"""Time and memory of training steps, test batches and predictions, of one or several checkouts:
README.md.

    python benchmarks/measure.py --trainer MPL --classes 5 50 200 --form fast plain
    python benchmarks/measure.py --against ../before --trainer MPL --form fast  # in turns
    python benchmarks/measure.py --official ../Modular-Prompt-Learning  # official code beside it
    python benchmarks/measure.py --page RESULTS.md  # all sections of that page

The ways to compare (code, form of the towers, precision) are measured in turns, each time in a new
process, with random weights of ViT-B/16's size, random images and the paper's settings of the
method. A record has the median of the rounds, the first way's time divided by its own, the memory
that a step needs beyond weights and prompts, and on a GPU the launches of a step and how often the
CPU waits. A test batch of a method that answers from views is one image.
"""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from datetime import date
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

# The project instead of benchmarks/, so that its packages are found first
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from PIL import Image

from clip.random_weights import random_clip
from common.errors import UsageError
from common.files import write_text
from common.start import ROOT, Parser, at_least
from common.version import source
from configs.files import config_folder
from configs.recipes import recipe
from runs.session import run_command
from trainers import methods
from trainers.base.feature_method import FeatureMethod
from trainers.base.settings import PRECISIONS
from trainers.base.test_time import ViewsMethod

COMMANDS = {"imports": ["-c", "import torch, torchvision, open_clip"]}
WHAT = ("train_step", "test_batch", "open_clip", "predict", *COMMANDS)
PARTS = ("train.py", "clip/clip.py", "datasets", "trainers", "configs/trainers")  # of official code
SECTIONS = {
    "A training step of MPL": "--classes 5 50 200",
    "A training step of other methods": "--classes 50 --trainer CoOp MaPLe PromptSRC CoCoOp",
    "Adapters, a plug-in, patches": "--classes 50 --trainer CLIPLoRA MMA DePT+MaPLe LoCoOp",
    "Precisions": "--classes 50 --form fast --prec fp32 bf16 amp",
    "A test batch": "--classes 50 --what test_batch open_clip --test-batch 20",
    "Views of an image": "--classes 100 --what test_batch --trainer TPT ZERO",
    "Prediction": "--classes 5 --what imports predict --images 1 60 --form fast",
}
NOTE = (
    "*fast* is the default form of the towers, *plain* that of the published code; *ratio* is the "
    "first way's time divided by this one's, *mb* the memory that a step needs beyond weights and "
    "prompts. Weights are random."
)


def parser() -> Parser:
    made = Parser(description=str(__doc__).splitlines()[0])
    number = at_least(1)
    add = made.add_argument
    add("--trainer", nargs="+", default=["MPL"], choices=[*methods(), "all"], metavar="METHOD")
    add("--classes", nargs="+", default=[50], type=number)
    add("--what", nargs="+", default=["train_step"], choices=WHAT)
    forms = ["fast", "plain"]
    add("--form", nargs="+", default=forms, choices=forms, help="of the towers")
    add("--prec", nargs="+", default=["fp32"], choices=PRECISIONS)
    text = "other checkouts of this project"
    add("--against", nargs="*", default=[], type=Path, metavar="DIR", help=text)
    text = "a checkout of official code in the form of CoOp's, which is run"
    add("--official", type=Path, metavar="DIR", help=text)
    add("--batch", type=number, default=4, help="images in a training step")
    add("--test-batch", type=number, default=100, help="images in a test batch")
    text = "image files of a command tools/predict.py"
    add("--images", nargs="+", type=number, default=[1], help=text)
    add("--rounds", type=number, default=3, help="how often the ways to compare take turns")
    add("--seconds", type=float, default=3, help="least time of measuring in one process")
    add("--threads", type=number, default=torch.get_num_threads())
    text = "a weight file; by default random weights are written to a temporary one"
    add("--backbone", default="", help=text)
    add("--json", type=Path, help="write the records there as well")
    add("--page", type=Path, help="measure all sections of RESULTS.md, and write that page there")
    return made


def records(args: Namespace) -> Iterator[dict]:
    """A record for each method, number of classes, kind of work and way."""
    trainers = list(args.trainer)
    if "all" in trainers:  # whose steps go through the towers
        kinds = methods().items()
        trainers = [
            name for name, kind in kinds if kind.learns and not issubclass(kind, FeatureMethod)
        ]
    for what in args.what:
        if what in COMMANDS:
            yield from compare(args, {"what": what}, [{"code": "this"}])
        elif what == "predict":
            codes = [{"code": str(code)} for code in ("this", *args.against)]
            for images in args.images:
                yield from compare(args, {"what": what, "images": images}, codes)
        elif what == "open_clip":
            yield from compare(args, {"what": what}, [{"code": "open_clip"}])
        else:
            for name, classes in product(trainers, args.classes):
                if what == "test_batch" or methods()[name].learns:
                    yield from compare(
                        args, {"what": what, "trainer": name, "classes": classes}, list(ways(args))
                    )


def ways(args: Namespace) -> Iterator[dict]:
    """The ways to compute a step that are compared."""
    for prec, form, code in product(args.prec, args.form, ("this", *map(str, args.against))):
        yield {"code": code, "form": form, "prec": prec}
    if args.official:
        yield from ({"code": "official", "form": "", "prec": prec} for prec in args.prec)


def compare(args: Namespace, kind: dict, ways: list[dict]) -> Iterator[dict]:
    """A record for each way. Each is measured once in every round, so that other processes slow
    down all of them.
    """
    rounds = [[measured(args, kind | way) for way in ways] for _ in range(args.rounds)]
    for number, way in enumerate(ways):
        own = [measurements[number] for measurements in rounds]
        ratios = [
            measurements[0]["seconds"] / measurements[number]["seconds"] for measurements in rounds
        ]
        medians = {key: statistics.median(record[key] for record in own) for key in own[0]}
        yield (
            kind
            | way
            | {"seconds": medians.pop("seconds"), "ratio": statistics.median(ratios)}
            | medians
        )


def of_method(trainer: str, checkout: Path) -> dict:
    """The facts of a method that the worker needs."""
    method = methods()[trainer]
    protocol = recipe(trainer, "few_shot")
    file = config_folder(trainer).relative_to(ROOT) / f"{protocol.cfg}.yaml"
    if not (checkout / file).is_file():
        raise UsageError(f"{checkout} has no {file}", "leave out this method, or --official")
    return {
        "config": str(file),
        "settings": list(protocol.settings),
        "section": method.section(),
        "views": issubclass(method, ViewsMethod),
    }


def measured(args: Namespace, way: dict) -> dict:
    """The seconds, and more, of one way in new processes."""
    official = way["code"] == "official"
    here = way["code"] in ("this", "open_clip")
    checkout = (ROOT if here else args.official if official else Path(way["code"])).resolve()
    if way["what"] in COMMANDS:
        return command_time(COMMANDS[way["what"]], checkout, args.threads)
    if way["what"] == "predict":
        files = args.photos[: way["images"]]
        command = [
            "tools/predict.py",
            *files,
            "--backbone",
            args.backbone,
            "--classes",
            "cat",
            "dog",
        ]
        return command_time(command, checkout, args.threads)
    settings = vars(args) | way | {"checkout": str(checkout), "official": official, "views": False}
    if trainer := way.get("trainer"):
        settings |= of_method(trainer, checkout)
    done = execute(
        [str(ROOT / "benchmarks/worker.py"), json.dumps(settings, default=str)],
        checkout,
        args.threads,
    )
    return json.loads(done.splitlines()[-1])


def command_time(command: list[str], checkout: Path, threads: int) -> dict:
    """The seconds of a command from its start to its end."""
    start = time.perf_counter()
    execute(command, checkout, threads)
    return {"seconds": time.perf_counter() - start}


def execute(command: list[str], checkout: Path, threads: int) -> str:
    """What Python prints for a command in a checkout. Its packages come first."""
    paths = [str(checkout), str(checkout / "toolbox")] if (checkout / "toolbox").is_dir() else []
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    done = subprocess.run(
        [sys.executable, *command], cwd=checkout, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        raise UsageError(
            f"{checkout}: {Path(command[0]).name}: {last}", "see the command's own errors"
        )
    return done.stdout


def table(found: list[dict]) -> list[str]:
    """The lines of a Markdown table of records."""
    columns = list(dict.fromkeys(key for record in found for key in record))
    cells = ([record.get(key, "") for key in columns] for record in found)
    rows = (
        [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row]
        for row in cells
    )
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


def machine(threads: int) -> str:
    """The day, the machine and the commit."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()}, {threads} threads"
    )
    commit = (source()["commit"] or "unknown")[:12]
    return f"{date.today()}, {device}, torch {torch.__version__}, commit {commit}"


def page(args: Namespace) -> None:
    """Measure the sections, and write them after each, so that a stopped program keeps its
    numbers.
    """
    lines = [
        f"# Measured times\n\n{machine(args.threads)}. `make bench` measures again and replaces "
        f"this page. {NOTE}"
    ]
    for title, options in SECTIONS.items():
        words = [
            *shlex.split(options),
            "--rounds",
            str(args.rounds),
            "--seconds",
            str(args.seconds),
        ]
        section = parser().parse_args([*words, "--threads", str(args.threads)])
        section.backbone = args.backbone
        section.photos = args.photos
        print(f"{title}: {options}", flush=True)
        try:
            body = "\n".join(table(list(records(section))))
        except UsageError as error:
            body = f"Not measured: {error}"
        lines.append(
            f"## {title}\n\n`python benchmarks/measure.py {options} --rounds "
            f"{args.rounds}`\n\n{body}"
        )
        write_text(args.page, "\n\n".join(lines) + "\n")


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    for part in PARTS if args.official else ():
        if not (args.official / part).exists():
            raise UsageError(
                f"{args.official} has no {part}", "give --official a checkout in the form of CoOp's"
            )
    with TemporaryDirectory() as folder:
        args.photos = [
            f"{folder}/{number}.png" for number in range(max(args.images) if not args.page else 60)
        ]
        for file in args.photos:
            Image.effect_noise((256, 256), 60).convert("RGB").save(file)
        if not args.backbone:
            args.backbone = f"{folder}/random.pt"
            torch.save(random_clip("ViT-B-16").state_dict(), args.backbone)
        if args.page:
            page(args)
            return
        print(machine(args.threads))
        found: list[dict] = []
        head = ""
        for record in records(args):
            found.append(record)
            lines = table(found)
            print(*(lines[-1:] if lines[0] == head else ["", *lines]), sep="\n", flush=True)
            head = lines[0]
            if args.json:
                write_text(args.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main, "from the first measurement")
