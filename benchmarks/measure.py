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
from pandas import DataFrame, concat
from PIL import Image

from clip.random_weights import random_clip
from common.errors import UsageError
from common.files import write_json, write_text
from common.start import ROOT, Parser, at_least
from common.version import source
from configs.files import config_folder
from configs.recipes import recipe
from runs.session import run_command
from trainers import methods
from trainers.base.feature_method import FeatureMethod
from trainers.base.settings import PRECISIONS
from trainers.base.test_time import ViewsMethod

COMMANDS = {
    "predict": ["tools/predict.py", "--classes", "cat", "dog"],
    "imports": ["-c", "import torch, torchvision, open_clip"],
}
STEPS = "train_step", "test_batch"
WHAT = (*STEPS, "open_clip", *COMMANDS)
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


def jobs(args: Namespace) -> Iterator[tuple[dict, list[dict]]]:
    """The measurements, and the ways that are compared."""
    codes = [{"code": str(code)} for code in ("this", *args.against)]
    for what in args.what:
        if what == "predict":
            for images in args.images:
                yield {"what": what, "images": images}, codes
        elif what not in STEPS:
            yield {"what": what}, codes[:1]
        else:
            for name, classes in product(trainers(args, what), args.classes):
                yield {"what": what, "trainer": name, "classes": classes}, list(ways(args))


def trainers(args: Namespace, what: str) -> list[str]:
    """The methods to measure; all are those whose steps go through the towers."""
    kinds = methods()
    if "all" in args.trainer:
        stepped = [name for name, kind in kinds.items() if not issubclass(kind, FeatureMethod)]
        return [name for name in stepped if kinds[name].learns]
    return [name for name in args.trainer if what == "test_batch" or kinds[name].learns]


def ways(args: Namespace) -> Iterator[dict]:
    """The ways to compute a step that are compared."""
    for prec, form, code in product(args.prec, args.form, ("this", *map(str, args.against))):
        yield {"code": code, "form": form, "prec": prec}
    if args.official:
        yield from ({"code": "official", "form": "", "prec": prec} for prec in args.prec)


def compare(args: Namespace, kind: dict, ways: list[dict]) -> DataFrame:
    """A row for each way. Each is measured once in every round, so that other processes slow down
    all of them.
    """
    rounds = []
    for _ in range(args.rounds):
        found = DataFrame([measured(args, kind | way) for way in ways])
        found["ratio"] = found["seconds"].iloc[0] / found["seconds"]
        rounds.append(found)
    medians = concat(rounds).groupby(level=0).median()
    return DataFrame([kind | way for way in ways]).join(medians)


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
    checkouts = {"this": ROOT, "official": args.official}
    checkout = Path(checkouts.get(way["code"], way["code"])).resolve()
    if way["what"] in COMMANDS:
        command = [*COMMANDS[way["what"]]]
        if way["what"] == "predict":
            command += ["--backbone", args.backbone, *photos(args.folder, way["images"])]
        start = time.perf_counter()
        execute(command, checkout, args.threads)
        return {"seconds": time.perf_counter() - start}
    settings = vars(args) | way | {"checkout": str(checkout), "views": False}
    settings["official"] = way["code"] == "official"
    if trainer := way.get("trainer"):
        settings |= of_method(trainer, checkout)
    worker = str(ROOT / "benchmarks/worker.py")
    done = execute([worker, json.dumps(settings, default=str)], checkout, args.threads)
    return json.loads(done.splitlines()[-1])


def photos(folder: str, number: int) -> list[str]:
    """So many image files in a folder, which are written if they are not there."""
    files = [f"{folder}/{place}.png" for place in range(number)]
    for file in files:
        if not Path(file).is_file():
            Image.effect_noise((256, 256), 60).convert("RGB").save(file)
    return files


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


def table(found: DataFrame) -> str:
    """The rows as a table of Markdown."""
    return markdown(found.map(lambda value: f"{value:.4g}" if isinstance(value, float) else value))


def machine(threads: int) -> str:
    """The day, the machine and the commit."""
    device = f"{platform.machine()}, {threads} threads"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    commit = (source()["commit"] or "unknown")[:12]
    return f"{date.today()}, {device}, torch {torch.__version__}, commit {commit}"


def write_page(args: Namespace) -> None:
    """Measure the sections, and write them after each, so that a stopped program keeps its
    numbers.
    """
    lines = [
        f"# Measured times\n\n{machine(args.threads)}. `make bench` measures again and replaces "
        f"this page. {NOTE}"
    ]
    for title, options in SECTIONS.items():
        words = f"{options} --rounds {args.rounds}"
        section = parser().parse_args(shlex.split(words), Namespace(**vars(args)))
        print(f"{title}: {words}", flush=True)
        try:
            found = concat([compare(section, *job) for job in jobs(section)])
            body = table(found.fillna(""))
        except UsageError as error:
            body = f"Not measured: {error}"
        lines.append(f"## {title}\n\n`python benchmarks/measure.py {words}`\n\n{body}")
        write_text(args.page, "\n\n".join(lines) + "\n")


def print_records(args: Namespace) -> None:
    """Print a row for each way when it is measured, and a header where the columns change."""
    print(machine(args.threads))
    records: list[dict] = []
    head = ""
    for job in jobs(args):
        found = compare(args, *job)
        lines = table(found).splitlines()
        print(*(lines[2:] if lines[0] == head else ["", *lines]), sep="\n", flush=True)
        head = lines[0]
        records += found.to_dict("records")
        if args.json:
            write_json(args.json, records)


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    for part in PARTS if args.official else ():
        if not (args.official / part).exists():
            raise UsageError(
                f"{args.official} has no {part}", "give --official a checkout in the form of CoOp's"
            )
    with TemporaryDirectory() as folder:
        args.folder = folder
        if not args.backbone:
            args.backbone = f"{folder}/random.pt"
            torch.save(random_clip("ViT-B-16").state_dict(), args.backbone)
        if args.page:
            write_page(args)
        else:
            print_records(args)


def markdown(frame: DataFrame) -> str:
    """The columns and rows as a table of Markdown."""
    lines = [frame.columns, ["---"] * len(frame.columns), *frame.to_numpy()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    run_command(main, "from the first measurement")
