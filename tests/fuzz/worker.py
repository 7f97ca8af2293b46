"""The process of one case: it runs a command on the case's files under a witness, and says how that ended."""

import json
import math
import os
import re
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dassl.evaluation import Classification
from published import change_file
from serving import serving

import experiments.results
import experiments.studies.command
import parse_test_res
import train
from common import download
from common.names import CONTROL
from datasets.preparing import command as preparing
from datasets.preparing.sources import downloadable
from experiments import comparing
from experiments.session import run_command
from inference import export, predict

from .cases import Case
from .witness import Witness


def parse(argv: list[str]) -> None:
    """A script that takes its arguments from `sys.argv`."""
    sys.argv[1:] = argv
    parse_test_res.main()


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "train": train.main,
    "study": experiments.studies.command.main,
    "prepare": preparing.main,
    "base2new": experiments.results.main,
    "predict": predict.main,
    "export": export.main,
    "compare": comparing.main,
    "parse_test_res": parse,
}
GIGABYTES = 4
KEPT = b"This file stays as it is.\n"  # ../outside/kept


@contextmanager
def server_of(case: Case) -> Iterator[str]:
    """The address of a server with the case's files and answers, which are those of no published checksum or count."""
    patch = pytest.MonkeyPatch()
    download.PAUSE = 0
    for name, source in downloadable().items() if case.program == "prepare" else ():
        patch.setattr(source.dataset, "counts", None)
        patch.setattr(source.dataset, "n_classes", None)
        for file in source.files:
            change_file(patch, name, file.name, bytes=0, about=10**6, md5="", sha256="")
    if not case.served:
        yield ""
        return
    with serving(dict(case.served)) as server:
        address = server.address.encode()
        server.faults = [
            answer.replace(b"{server}", address) if isinstance(answer, bytes) else answer for answer in case.answers
        ]
        yield server.address


def run(case: Case, folder: Path, report: Callable[[str, str], None]) -> None:
    """Run a case in this process, which has no other use. `report(verdict, what)` is called at least once."""
    os.environ |= {"HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    tempfile.tempdir = str(folder)
    os.fsync = lambda file: None  # nobody cuts the power
    outside = folder.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "kept").write_bytes(KEPT)
    case.write(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (GIGABYTES << 30),) * 2)
    logits = watched_logits()
    with server_of(case) as address:
        argv = [argument.replace("{server}", address) for argument in case.argv]
        ports = (int(address.rpartition(":")[2]),) if address else ()
        Witness(folder, lambda line: report("failure", line), ports).start()
        verdict, what = ended(PROGRAMS[case.program], argv)
    wrong = leftovers(case, folder, verdict)
    if verdict == "accepted":
        wrong = wrong or case.check() or nonsense(case, folder, logits)
    found = {item.name: item.is_file() and item.read_bytes() for item in outside.iterdir()}
    if found != {"kept": KEPT}:
        verdict, wrong = "", f"changes files outside its folder: {sorted(found)}"
    report(*(("failure", wrong) if wrong and verdict != "failure" else (verdict, what)))


def ended(program: Callable[[list[str]], None], argv: list[str]) -> tuple[str, str]:
    """How a command ended; its error is the last line on stderr."""
    try:
        run_command(lambda: program(argv))
    except SystemExit as end:
        status = end.code
    except BaseException:
        return "failure", traceback.format_exc()
    else:
        status = 0
    sys.stdout.flush()
    sys.stderr.flush()
    if status == 0:
        return "accepted", ""
    lines = [line for line in Path("/proc/self/fd/2").read_text(errors="replace").splitlines() if line.strip()]
    if status == 1 and any(line.startswith("skipped: ") for line in lines):  # by predict, after others
        return "accepted", ""
    if status != 2 or not lines or ": error: " not in f": {lines[-1]}" or any("Traceback" in line for line in lines):
        return "failure", f"exit status {status}: " + "\n".join(lines[-20:])
    if not lines[-1].isprintable():  # a terminal would obey it
        return "failure", f"control characters in the error {lines[-1]!r}"
    return "refused", lines[-1]


def watched_logits() -> list[bool]:
    """A list that gets, for each batch that an evaluation counts, whether its largest logits are finite."""
    finite: list[bool] = []
    process = Classification.process

    def watched(self, logits, labels):
        finite.append(bool(logits.amax(dim=1).isfinite().all()))
        process(self, logits, labels)

    Classification.process = watched  # type: ignore[method-assign]
    return finite


def nonsense(case: Case, folder: Path, logits: list[bool]) -> str:
    """The fault in the results that a run has left, or in what is printed: a terminal would obey names from files."""
    printed = Path("/proc/self/fd/2").read_text(errors="replace").replace("\n", "") if case.program == "predict" else ""
    if found := CONTROL.search(printed):
        return f"prints {found[0]!r}"
    if not all(logits):
        return "an accuracy of logits that are not finite"
    for file in (folder / place / "results.json" for place in ("out", "run")):
        accuracy = json.loads(file.read_text()).get("accuracy") if file.exists() else None
        if isinstance(accuracy, float) and not (math.isfinite(accuracy) and 0 <= accuracy <= 100):
            return f"the accuracy is {accuracy}"
    return ""


def leftovers(case: Case, folder: Path, verdict: str) -> str:
    """The files that an input has left behind, or an empty text. A download may stay, so that it can be resumed."""
    made = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()} - case.files.keys()
    left = [name for name in sorted(made) if re.search(r"/\.[^/]+\.(tmp|partial)$|/\.preparing/.+/", name)]
    if verdict == "refused" and "--no-train" in case.argv:
        left += [name for name in made if name.startswith("out/") and name != "out/.lock"]
    return f"leaves {left[0]} behind" if left else ""


def start(make: Callable[[], Case], folder: Path, output: Path) -> int:
    """Begin a process that makes and runs a case; returns its id. Its verdicts are lines of `output`."""

    def work() -> None:
        verdicts = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def report(verdict: str, what: str) -> None:
            os.write(verdicts, json.dumps([verdict, what]).encode() + b"\n")

        try:
            os.chdir(folder)
            case = make()
            output.with_suffix(".argv").write_text(f"{case.program} {case.argv!r}\n")
            run(case, folder, report)
        except BaseException:
            report("harness", traceback.format_exc())

    return in_process(work, output.with_suffix(".log"))


def in_process(work: Callable[[], object], log: Path) -> int:
    """Fork a process in a session of its own, with its output in a file; it ends after `work`. Returns its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setsid()
        sys.argv = ["command"]
        streams = os.open(os.devnull, os.O_RDONLY), *[os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC)] * 2
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)
