"""A small project of valid files, and commands on copies of it, one file of which is changed."""

import gc
import io
import os
import pickle
import re
import shutil
import signal
import sys
import tarfile
import tempfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from itertools import count
from pathlib import Path

import pyarrow
import torch
import yaml
from drawn import arguments, small_clip, write_eurosat
from finished import finish, slowdown
from hostile import as_yaml
from marks import of_json, to_json
from published import packed
from pyarrow import parquet
from safetensors.torch import save_file
from strangers import (
    fill_hub,
    write_stranger,
)
from trees import build_tree
from witness import Witness

from common.names import CONTROL
from datasets.preparing.sources import downloadable
from runs.session import run_command

PROGRAMS = {
    "predict": "inference.predict",
    "study": "studies.command",
    "base2new": "measures.results",
}
PROGRAMS |= {
    "compare": "studies.compare",
    "embed": "inference.embed",
    "export": "inference.export",
    "fit": "fit.command",
    "prepare": "datasets.preparing.command",
}
# Of one input
SECONDS = 20
MEGABYTES = 2000
QUICK = (
    "OPTIM.MAX_EPOCH",
    2,
    "DATASET.NUM_SHOTS",
    1,
    "DATALOADER.TRAIN_X.BATCH_SIZE",
    4,
    "OPTIM.WARMUP_EPOCH",
    1,
)
STUDY = {
    "trainers": {"ZeroshotCLIP": "small"},
    "datasets": ["eurosat"],
    "seeds": [1],
    "output": "studied",
}
STUDY |= {"protocols": ["base2new"], "backbone": "small", "root": "data", "shots": [1, 2]}


def argv_of(line: str) -> list[str]:
    """The words of a command line of fuzzed.yaml."""
    line, _, pairs = line.partition(" : ")
    program, *words = line.split()
    if program != "train":
        return [program, *words]
    trainer, output, *options = words
    options = ["--config-file", "method.yaml", "--dataset-config-file", "dataset.yaml", *options]
    how = {"trainer": trainer, "config": "small", "options": options}
    return ["train", *arguments("data", "tiny.pt", output, *QUICK, *pairs.split(), **how)]


TABLE = yaml.safe_load(Path(__file__).with_name("fuzzed.yaml").read_text())
READERS = {name: (file, argv_of(line)) for name, (file, line) in TABLE.items()}
RESUMED = READERS["checkpoint, resumed"][1]
STRANGER = READERS["tokeniser"][1]
FROM_HUB = [*STRANGER[:-1], "hf-hub:stranger/clip"]
CACHED_HUB = "hub/models--stranger--clip/snapshots/" + "0" * 40


class Hang(BaseException):
    """An input took too long; no handler of the project catches it."""


class Project:
    """A folder of valid files, and commands on copies of it."""

    def __init__(self, place: Path):
        self.place = place
        self.base = place / "base/case"
        self.numbers = count()
        self.witness = Witness()
        self.witness.forbidden = ("evil", "models--stranger")
        self.accepted: set[str] = set()  # readers whose unchanged file was accepted
        self.base.mkdir(parents=True)
        torch.manual_seed(1)
        with self.inside(self.base):
            self.build()

    def build(self) -> None:
        """Write the valid files by the project's own commands."""
        state = {key: value.half() for key, value in small_clip().state_dict().items()}
        torch.save(state, "tiny.pt")
        save_file(state, "tiny.safetensors")
        write_eurosat(Path("data"), ["red", "green field"], train=2, val=1, test=2)
        section = {"N_CTX": 4, "PREC": "fp32"}
        transforms = ["random_resized_crop", "random_flip", "normalize"]
        inputs = {"SIZE": [32, 32], "TRANSFORMS": transforms}
        Path("method.yaml").write_bytes(
            as_yaml({"TRAINER": {"COOP": section}, "INPUT": inputs, "OPTIM": {"LR": 0.002}})
        )
        Path("dataset.yaml").write_bytes(as_yaml({"DATASET": {"NAME": "EuroSAT"}}))
        write_stranger(Path("stranger"))
        fill_hub(Path("hub"), Path("stranger"))
        Path("names.txt").write_text("red\ngreen field\nblåtime\n")
        shutil.copy("data/eurosat/2750/0/test_0.png", "image.png")
        Path("study.yaml").write_bytes(as_yaml(STUDY))
        self.succeeds(argv_of("train CoOp run"))
        self.succeeds(argv_of("train CoOp other"))
        shutil.copytree(
            "run",
            "cut",
            ignore=shutil.ignore_patterns("results.json", "predictions.npz", "tests.jsonl"),
        )
        Path("cut/config.yaml").write_text(
            Path("run/config.yaml").read_text().replace("MAX_EPOCH: 2", "MAX_EPOCH: 3")
        )
        self.succeeds(["export", "run", "--to", "exported"])
        features = ["embed", "data", "--backbone", "tiny.pt", "--to"]
        self.succeeds([*features, "bank"])
        self.succeeds([*features, "looks", "--near-copies"])
        self.succeeds([*features, "retrieval", "--layout", "clip-retrieval"])
        self.succeeds(READERS["answers, predicted again"][1])
        Path("list.csv").write_text("path,label\nimage.png,red\n")
        parquet.write_table(pyarrow.table({"path": ["image.png"]}), "list.parquet")
        with tarfile.open("images.tar", "w") as archive:
            archive.add("image.png")
        cached = READERS["cached features"][1]
        self.succeeds(cached)
        shutil.rmtree("out")
        (file,) = Path("cache").glob("features*")
        READERS["cached features"] = (str(file), cached)
        few = downloadable()["eurosat"].read(Path("data").absolute(), "DATASET.NUM_SHOTS", "1")
        Path("few.pkl").write_bytes(pickle.dumps({"train": few.train_x, "val": few.val}))
        to_json(Path("chosen.json"), {"settings": {"OPTIM.LR": "0.01"}, "choices": []})
        study = import_module("studies.plan").load(Path("study.yaml"))
        for run in study.runs():
            finish(run, 50.0)
        first, *_, last = study.runs()
        (last.folder / "results.json").unlink()
        (last.folder / "error.txt").write_text("error: the disk is full\n")
        for name, file in (
            ("results of a study", first.folder / "results.json"),
            ("error of a study", last.folder / "error.txt"),
        ):
            READERS[name] = (str(file), READERS[name][1])
        Path("logs/seed1").mkdir(parents=True)
        Path("logs/seed1/log.txt").write_text(
            "=> result\n* total: 9\n* accuracy: 90.5%\n* macro_f1: 80.0%\n"
        )
        Path("given").mkdir()
        for name, data in packed(
            "eurosat", build_tree("eurosat", Path("trees")), Path("packing")
        ).items():
            Path("given", name).write_bytes(data)

    @contextmanager
    def inside(self, folder: Path):
        """Work in a folder, next to a file that must stay as it is."""
        outside = folder.parent / "outside"
        outside.mkdir(exist_ok=True)
        (outside / "kept").write_text("kept")
        before = os.getcwd()
        temporary = tempfile.tempdir
        os.chdir(folder)
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            os.chdir(before)
            tempfile.tempdir = temporary
        assert [path.name for path in outside.iterdir()] == ["kept"] and (
            outside / "kept"
        ).read_text() == "kept"

    @contextmanager
    def copied(self):
        """A copy of the valid files, in which commands work."""
        folder = self.place / f"{next(self.numbers)}/case"
        shutil.copytree(self.base, folder)
        try:
            with self.inside(folder):
                yield
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)

    def run(self, argv: list[str]) -> tuple[int, str, str]:
        """The status of a command, and what it prints. It must end in time, change no other folder,
        and run nothing.
        """
        program, *words = argv
        main = import_module(PROGRAMS.get(program, program)).main
        stdout = io.StringIO()
        stderr = io.StringIO()
        handlers = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            handlers[number] = signal.getsignal(number)
        signal.signal(signal.SIGALRM, hang)
        gc.collect()  # of trainers before, which are large
        Path("/proc/self/clear_refs").write_text("5")  # the largest memory is that of now
        memory = megabytes("VmRSS")
        signal.setitimer(signal.ITIMER_REAL, SECONDS * slowdown())
        self.witness.seen = []
        self.witness.folder = f"{os.path.realpath('.')}/"
        status = 0
        before = (sys.stdout, sys.stdin)
        sys.argv, kept = [program, *words], sys.argv
        sys.stdin = io.StringIO("y\n" * 9)  # to whatever a library may ask
        try:
            with redirect_stdout(stdout), redirect_stderr(stderr):
                run_command(lambda: main() if program == "parse_test_res" else main(words))
        except SystemExit as end:
            status = end.code
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.witness.folder, sys.argv, (sys.stdout, sys.stdin) = "", kept, before
            for number, handler in handlers.items():
                signal.signal(number, handler)
        assert megabytes("VmHWM") - memory < MEGABYTES
        return status, stdout.getvalue(), stderr.getvalue()

    def succeeds(self, argv: list[str]) -> None:
        status, printed, errors = self.run(argv)
        assert status == 0, f"{argv}\n{printed}\n{errors}"

    def is_handled(self, argv: list[str]) -> bool:
        """Run a command on anybody's input, check how it ends, and return whether it accepts the
        input.
        """
        status, printed, errors = self.run(argv)
        assert self.witness.seen == []  # processes that say what the machine is were started before
        lines = [line for line in errors.splitlines() if line.strip()]
        if status == 2:
            assert lines[-1].startswith("error: ") and "Traceback" not in errors, errors
        else:
            told = ("skipped", "could not be read")
            skipped = status == 1 and any(word in line for line in lines for word in told)
            assert status == 0 or skipped, f"status {status}\n{errors}"
        # A terminal would obey it
        assert not CONTROL.search(re.sub("[\r\n\t]", "", printed + errors))
        unfinished = re.compile(r"\.(tmp|partial)$|/\.preparing/.+/|^tmp\w{8}$")
        left = [str(path) for path in Path().rglob("*") if unfinished.search(str(path))]
        made = Path("out").rglob("*") if status == 2 and "--no-train" in argv else ()
        left += [str(path) for path in made if path.name != ".lock"]
        assert left == []
        for file in (Path("out/results.json"), Path("run/results.json")):
            if (
                status == 0
                and file.is_file()
                and argv[0] == "train"
                and "--skip-finished" not in argv
            ):
                assert 0 <= of_json(file)["accuracy"] <= 100
        return status == 0


def megabytes(name: str) -> int:
    """A number of this process that Linux counts."""
    (kilobytes,) = re.findall(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes) >> 10


def hang(*_: object) -> None:
    raise Hang(f"not ended after {SECONDS} seconds")
