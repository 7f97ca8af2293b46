"""Fixtures that run the project's commands, in this process or in others."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import traceback
from dataclasses import replace
from typing import NamedTuple

import drawn
import pytest
from drawn import arguments, error_lines
from forked import forking_python
from published import publishing
from trees import build_tree

from common.lock import LOCK
from common.results import read_results
from common.start import ROOT
from datasets.preparing import command as preparing
from runs.session import run_command
from train import main as train


def copy_project(folder, *left_out):
    """Copy the files that git lists, or would list; not those of these folders."""
    command = ["git", "ls-files", "-coz", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(left_out):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


class Ended(NamedTuple):
    """How a program ended: its exit status, what it printed, and its lines on stderr without
    progress bars.
    """

    status: int
    printed: str
    errors: list[str]

    @property
    def error(self) -> str:
        """The line of a program that has ended with an error of its user."""
        assert (self.status, len(self.errors)) == (2, 1), self.errors
        assert self.errors[0].startswith("error: ")
        return self.errors[0]


class Command:
    """A command, which runs in this process: a call returns an `Ended`, and that of `works` is one
    that must succeed.
    """

    def __init__(self, ended, main, *resumes):
        self.ended = ended
        self.main = main
        self.resumes = resumes

    def __call__(self, *arguments, **options):
        return self.ended(
            lambda: run_command(lambda: self.main(*arguments, **options), *self.resumes)
        )

    def works(self, *arguments, **options):
        done = self(*arguments, **options)
        assert done.status == 0, done
        return done


@pytest.fixture
def ended(capsys):
    """`ended(run)` runs a program by what its file runs at its end, in this process, and returns an
    `Ended`.
    """

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ended(run):
        status = 0
        stdout = sys.stdout
        try:
            run()
        except SystemExit as end:
            status = end.code
            # A data loader left to the garbage collector waits five seconds for its workers.
            for error in filter(None, (end, end.__context__)):
                traceback.clear_frames(error.__traceback__)
        finally:  # a run replaces stdout by its log, and sets handlers for signals
            sys.stdout = stdout
            for number, handler in handlers.items():
                signal.signal(number, handler)
        printed, errors = capsys.readouterr()
        return Ended(status, printed, error_lines(errors))

    return ended


@pytest.fixture
def launch(ended):
    """`launch(*arguments)` runs train.py in this process and returns an `Ended`."""
    return Command(ended, lambda *arguments: train([*map(str, arguments)]))


@pytest.fixture
def argv(eurosat, tiny, tmp_path):
    """`argv(METHOD, KEY, VALUE, ..., output=, config=, root=, backbone=, options=)`: a command line
    of train.py.
    """

    def argv(method, *pairs, output="out", config="small", root=eurosat, backbone=tiny, options=()):
        return arguments(
            root,
            backbone,
            tmp_path / output,
            *pairs,
            trainer=method,
            config=config,
            options=options,
        )

    return argv


@pytest.fixture
def run(launch, eurosat, tiny, tmp_path):
    """`run(name, KEY, VALUE, ..., root=, backbone=, **of_arguments)` is a run that succeeds;
    returns its folder.
    """

    def run(name, *overrides, root=eurosat, backbone=tiny, **others):
        ended = launch(*arguments(root, backbone, tmp_path / name, *overrides, **others))
        assert ended.status == 0, ended.errors
        return tmp_path / name

    return run


@pytest.fixture
def class_folders(eurosat, tmp_path):
    """Class folders with 8 images each."""
    return drawn.class_folders(eurosat, tmp_path / "photos", 8)


@pytest.fixture
def fitting(ended, tiny, tmp_path):
    """`fitting(images, OPTION, ..., to="model")` runs tools/fit.py on a random CLIP, without
    training of towers, to a folder in tmp_path; returns an `Ended`. Options replace those given
    here.
    """
    from fit import command as fit

    def main(images, *options, to="model"):
        words = [images, "--backbone", tiny, "--minutes", 0, "--to", tmp_path / to, *options]
        fit.main([*map(str, words)])

    return Command(ended, main)


@pytest.fixture
def interrupted_server(monkeypatch):
    """Ctrl-C ends a server as soon as it serves."""
    from inference.serving.server import Server

    async def main_loop(server):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Server, "main_loop", main_loop)


@pytest.fixture
def chromium():
    """A browser that nobody sees."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def imagenet(tmp_path):
    """A root with miniatures of ImageNet and ImageNetV2: 4 classes, 3 images each for training and
    2 for testing.
    """
    build_tree("imagenet", tmp_path / "data")
    build_tree("imagenetv2", tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def on_imagenet(run, imagenet):
    """`on_imagenet(name, KEY, VALUE, ..., root=, options=)` trains MPL two epochs, and returns the
    folder.
    """

    def on_imagenet(name, *overrides, root=imagenet, options=()):
        options = ["--dataset-config-file", ROOT / "configs/datasets/imagenet.yaml", *options]
        return run(name, *overrides, root=root, options=options)

    return on_imagenet


@pytest.fixture
def command(ended):
    """`command(module, *arguments)` runs the `main` of a command's module in this process and
    returns an `Ended`.
    """

    return Command(ended, lambda module, *arguments: module.main([*map(str, arguments)]))


@pytest.fixture
def reproduced(command, monkeypatch, eurosat, tmp_path):
    """`reproduced(METHOD, backbone, option, ...)` tests the checkpoints in tmp_path/set on EuroSAT;
    returns an `Ended`.

    The tests take place in this process on small images; their results are in tmp_path/out.
    """
    from finished import InThisProcess
    from learned import SHORT

    from studies import reproduce
    from studies import run as execution

    def collected(study):
        found = {run: read_results(run.folder) for run in study.runs()}
        # Other backbones have no published results.
        return {
            run: replace(results, backbone="ViT-B/16") for run, results in found.items() if results
        }

    monkeypatch.setattr(execution, "LocalExecutor", InThisProcess)
    monkeypatch.setattr(InThisProcess, "more", tuple(map(str, SHORT[4:])))
    monkeypatch.setattr(reproduce, "collect_results", collected)
    places = ["--checkpoints", tmp_path / "set", "--root", eurosat, "--output", tmp_path / "out"]
    common = [*places, "--datasets", "eurosat"]
    return lambda method, backbone, *options: command(
        reproduce, method, *common, "--backbone", backbone, *options
    )


@pytest.fixture
def refused(launch, tmp_path):
    """`refused(arguments, *words)`: the run to `tmp_path/out` ends in one line with these words,
    and leaves nothing.
    """

    def refused(argv, *words):
        error = launch(*argv).error
        assert [word for word in map(str, words) if word not in error] == [], error
        assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} <= {LOCK}

    return refused


@pytest.fixture
def script(eurosat, deep, python, tmp_path):
    """`script("mpl/few_shot.sh", "eurosat", "1", SHOTS="2")` -> (the ended process, the programs
    that it would start).

    It is a dry run, started from another folder; `DRY_RUN=""` is the real one.
    """

    unset = {"CFG", "SHOTS", "SOURCE", "NCTX", "CSC", "CTP", "QUIET", "PREPARE", "REPORT_TO"}
    given = {
        "DATA": eurosat,
        "OUT": tmp_path / "out",
        "BACKBONE": deep,
        "PYTHON": python,
        "DRY_RUN": 1,
    }

    def script(name, *arguments, **variables):
        env = {key: value for key, value in os.environ.items() if key not in unset}
        env |= {key: str(value) for key, value in (given | variables).items()}
        program = ["bash", ROOT / "scripts" / name, *map(str, arguments)]
        ended = subprocess.run(program, env=env, cwd=tmp_path, capture_output=True, text=True)
        lines = [line for line in ended.stdout.splitlines() if line.startswith("python ")]
        return ended, [shlex.split(line)[1:] for line in lines]

    return script


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """A fast replacement of `sys.executable` for scripts of the project, unless the test sends them
    a signal.
    """

    with forking_python(tmp_path_factory.mktemp("python")) as program:
        yield program


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """`publish(name)` puts a miniature of a dataset on a server, packed as it is published: see
    tests/helpers/published.py.
    """

    with publishing(tmp_path, monkeypatch) as publish:
        yield publish


@pytest.fixture
def prepare(ended, publish, tmp_path):
    """`prepare(*arguments)` is tools/prepare.py with `tmp_path/data` as root and that server as
    mirror: an `Ended`.
    """

    def prepare(*arguments, mirror=publish.server.address, root=tmp_path / "data"):
        preparing.main([*map(str, arguments), "--root", str(root), "--mirror", mirror])

    return Command(ended, prepare, "where it stopped")


@pytest.fixture
def prepare_fails(prepare):
    """`prepare_fails(arguments, *words)`: it ends in one line with these words; returns what it
    printed before.
    """

    def prepare_fails(arguments, *words, **how):
        ended = prepare(*arguments, **how)
        assert [word for word in map(str, words) if word not in ended.error] == [], ended.error
        return ended.printed

    return prepare_fails


@pytest.fixture
def begin():
    """`begin(command, **options)` -> a process in a session of its own, which does not outlive the
    test.
    """
    begun = []

    def begin(command: list[str], **options) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen(command, start_new_session=True, **pipes, **options))
        return begun[-1]

    yield begin
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def start(begin):
    """`start(file, *options)` begins `study run`."""
    return lambda file, *options: begin(
        [sys.executable, "tools/study.py", "run", str(file), *options], cwd=ROOT
    )
