"""Files, settings and downloads from anybody: they are accepted, or refused in one line, and
nothing in them runs.

Each property changes one file of a small project and runs one command on it, in this process.
Nothing outside its folder may change, no process start, no text run as code, nobody be asked by
network, and no file be opened that only a configuration names; nothing half-written may stay, and
what has a checksum may not give other results. `make fuzz FUZZ=5000 SEED=7` tries many inputs;
hypothesis prints the smallest one that fails.
"""

import gc
import io
import json
import os
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

import pytest
import torch
import yaml
from dassl.config import get_cfg_default
from drawn import arguments, small_clip, write_eurosat
from finished import finish, slowdown
from hostile import NAMES, NUMBERS, SPECIAL, Witness, as_json, as_yaml, content_of, damaged, put
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from published import change_file, packed
from safetensors.torch import save_file
from strangers import (
    CONFIG,
    FORMS,
    OPEN_CLIP,
    OPTIONS,
    TOKENS,
    change,
    fill_hub,
    strange,
    write_stranger,
)
from trees import build_tree

from common.names import CONTROL
from datasets.preparing.sources import downloadable
from runs.configuration import extend_cfg, flatten
from runs.session import run_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc"),
]

PROGRAMS = {
    "predict": "inference.predict",
    "study": "studies.command",
    "base2new": "measures.results",
}
PROGRAMS |= {
    "compare": "studies.comparing",
    "embed": "inference.embed",
    "export": "inference.export",
    "prepare": "datasets.preparing.main",
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
# A change of one byte in these may not give other results without a word.
CHECKED = ("checkpoint, evaluated", "exported prompts", "cached features")
PROPERTIES = len(READERS) + len(CHECKED) + 5
EXAMPLES = -(-int(os.environ.get("FUZZ", 2 * PROPERTIES)) // PROPERTIES)
several = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink] if "FUZZ" in os.environ else [Phase.generate],
    print_blob=True,
)


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
        self.succeeds(["embed", "data", "--backbone", "tiny.pt", "--to", "bank"])
        Path("list.csv").write_text("path,label\nimage.png,red\n")
        with tarfile.open("images.tar", "w") as archive:
            archive.add("image.png")
        cached = READERS["cached features"][1]
        self.succeeds(cached)
        shutil.rmtree("out")
        (file,) = Path("cache").glob("features*")
        READERS["cached features"] = (str(file), cached)
        self.succeeds(["prepare", "splits", "eurosat", "--root", "data", "--shots", "1"])
        for name in ("few.pkl", "few_train.jsonl"):
            (made,) = Path("data").glob(f"**/*{name[3:]}")
            shutil.copy(made, name)
        Path("chosen.json").write_text(
            json.dumps({"settings": {"OPTIM.LR": "0.01"}, "choices": []})
        )
        study = import_module("studies.study_file").load(Path("study.yaml"))
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
                assert 0 <= json.loads(file.read_text())["accuracy"] <= 100
        return status == 0


def megabytes(name: str) -> int:
    """A number of this process that Linux counts."""
    (kilobytes,) = re.findall(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes) >> 10


def hang(*_: object) -> None:
    raise Hang(f"not ended after {SECONDS} seconds")


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("fuzz")
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.setattr(os, "fsync", lambda file: None)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "hub")  # of each case
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        source = downloadable()["eurosat"]
        patch.setattr(source.dataset, "counts", None)
        patch.setattr(source.dataset, "n_classes", None)
        for file in source.files:  # of no published checksum
            change_file(patch, "eurosat", file.name, bytes=0, about=10**6, md5="", sha256="")
        yield Project(place)


@pytest.mark.parametrize("reader", READERS)
@several
@given(data=st.data())
def test_a_file_from_anybody_is_read_or_refused(reader, project, data):
    file, argv = READERS[reader]
    if reader not in project.accepted:  # otherwise its refusals show nothing
        project.accepted.add(reader)
        with project.copied():
            project.succeeds(argv)
    content = data.draw(content_of(project.base / file))
    with project.copied():
        put(Path(file), content)
        project.is_handled(argv)


@pytest.mark.parametrize("reader", CHECKED)
@several
@given(data=st.data())
def test_a_damaged_file_gives_no_other_result(reader, project, data):
    file, argv = READERS[reader]
    content = data.draw(damaged((project.base / file).read_bytes()))
    with project.copied():
        project.succeeds(argv)
        name = "out/predictions.npz"
        expected = Path(name).read_bytes() if Path(name).exists() else b""
        shutil.rmtree("out", ignore_errors=True)
        put(Path(file), content)
        if project.is_handled(argv) and expected:
            assert Path(name).read_bytes() == expected


MADE = (
    "predictions.npz",
    "tests.jsonl",
    "cmat.pt",
    "partial_test",
    "results.json",
    "studies/study/tables.md",
)


@pytest.mark.parametrize("folder", ["cut", "studied"])
@several
@given(data=st.data())
def test_no_link_or_pipe_in_a_folder_is_followed(folder, project, data):
    """Of a run that is resumed, and of a study."""
    names = [
        str(path.relative_to(project.base)) for path in sorted((project.base / folder).rglob("*"))
    ]
    place = data.draw(st.sampled_from([*names, *(f"{folder}/{name}" for name in MADE)]))
    argv = (
        RESUMED
        if folder == "cut"
        else ["study", data.draw(st.sampled_from(("tables", "status"))), "study.yaml"]
    )
    content = data.draw(st.sampled_from(SPECIAL))
    with project.copied():
        put(Path(place), content)
        project.is_handled([*argv, *(("TEST.COMPUTE_CMAT", "True") if folder == "cut" else ())])


NAMING = {f"stranger/{file}": STRANGER for file in (OPEN_CLIP, CONFIG, OPTIONS, TOKENS)}
NAMING |= {f"{CACHED_HUB}/{file}": FROM_HUB for file in (OPEN_CLIP, CONFIG, OPTIONS)}
NAMING["exported/config.json"] = ["predict", "exported", "image.png"]


@several
@given(data=st.data())
def test_what_a_configuration_names_is_not_looked_up(project, data, monkeypatch):
    """Text towers, models of timm, tokenisers, kernels, code, repositories: of a folder, a
    repository, an export.
    """
    file = data.draw(st.sampled_from([*NAMING]))
    with project.copied(), monkeypatch.context() as patch:
        patch.setattr(project.witness, "forbidden", ("evil", "outside/kept"))
        if file.startswith("hub/"):  # its owner is named by an option, and may be asked
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        else:
            patch.setattr(
                project.witness, "forbidden", (*project.witness.forbidden, "models--stranger")
            )
        content = data.draw(strange(json.loads(Path(file).read_text())))
        put(Path(file), as_json(content))
        if data.draw(st.booleans()):  # then files that a configuration names are missing beside it
            Path(file).with_name(data.draw(st.sampled_from(("tokenizer.json", CONFIG)))).unlink(
                missing_ok=True
            )
        project.is_handled(NAMING[file])


@several
@given(data=st.data())
def test_known_attacks_by_configurations_fail(project, data, monkeypatch):
    """The forms of a stranger's folder, two at a time; also in a repository that an exported folder
    names.
    """
    forms = data.draw(st.lists(st.sampled_from([*FORMS]), min_size=1, max_size=2))
    place, argv = data.draw(
        st.sampled_from([("stranger", STRANGER), (CACHED_HUB, NAMING["exported/config.json"])])
    )
    with project.copied(), monkeypatch.context() as patch:
        patch.setattr(project.witness, "forbidden", ("evil", "outside/kept", "models--stranger"))
        sha256 = data.draw(st.sampled_from(("", "0" * 64)))
        change(
            Path("exported/config.json"),
            (),
            {"backbone": "hf-hub:stranger/clip", "backbone_sha256": sha256},
        )
        for file, path, keys in map(FORMS.get, forms):
            change(Path(place, file), path, keys)
        project.is_handled(argv)


@several
@given(data=st.data())
def test_settings_from_anybody_are_accepted_or_refused(project, data):
    cfg = get_cfg_default()
    extend_cfg(cfg, "MPL")
    keys = [
        key
        for key in flatten(cfg)
        if key.startswith("TRAINER.MPL.") or not key.startswith("TRAINER.")
    ]
    words = [name for name in NAMES if "\0" not in name] + [str(number) for number in NUMBERS]
    words += ["None", "[]", "()", "{}", "[[1]]", "True", "1.5", "[" * 3000, "[1, 'a']"]
    key = data.draw(st.sampled_from([*keys, "X.Y", "OPTIM", "OPTIM.LR.X"]))
    assume(key not in ("OUTPUT_DIR", "RESUME", "CACHE"))  # it is the user's choice where to write
    with project.copied():
        project.is_handled(
            [*argv_of("train MPL out --no-train"), key, data.draw(st.sampled_from(words))]
        )
