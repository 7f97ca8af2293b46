"""`make fuzz`: a sample of its inputs, and what its limits, its witness and its table report."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from random import Random

import pytest
from fuzz import downloads, harness, images, models, settings, texts, weights, worker  # noqa: F401 - they register their kinds
from fuzz.cases import KINDS, Case, kind_of
from fuzz.changes import change_bytes, change_tree

from common.errors import UsageError
from common.start import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the fuzzer forks, and reads /proc")


@pytest.mark.slow
def test_three_hundred_inputs_have_no_failure(tmp_path):
    command = [sys.executable, "-m", "fuzz", "--count", "300", "--keep", str(tmp_path)]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (total,) = (line.split()[1:] for line in done.stdout.splitlines() if line.startswith("all"))
    inputs, refused, accepted, failures = map(int, total)
    assert (inputs, failures) == (300, 0) and refused > 100 and accepted > 30


# Faults of a command that the harness must report


def hang():
    time.sleep(60)


def raise_an_error():
    raise KeyError("epoch")


def fill_the_memory():
    _ = b"x" * (1 << 30)  # more than what a fork leaves out: the pages of mapped files


def crash():
    os.kill(os.getpid(), signal.SIGKILL)


def write_outside():
    Path("../outside/made").write_text("x")


def write_outside_unseen_by_python():
    ctypes.CDLL(None).fopen(b"../outside/made", b"w")


def delete_outside_unseen_by_python():
    ctypes.CDLL(None).unlink(b"../outside/kept")


def write_through_a_link():
    Path("link").symlink_to("../outside/kept")
    Path("link").write_text("x")


def delete_outside():
    Path("../outside/kept").unlink()


def move_outside():
    Path("file").write_text("x")
    os.rename("file", "../outside/made")


def start_a_process():
    subprocess.run(["true"], check=True)


def start_a_shell():
    os.system("true")


def run_a_text():
    exec("x = 1")


def run_a_text_and_hide_it():
    try:
        exec("x = 1")
    except BaseException:
        return


def run_a_file():
    Path("foreign.py").write_text("x = 1")
    sys.path.insert(0, os.getcwd())
    import_module("foreign")


def connect():
    with __import__("socket").create_connection(("127.0.0.1", 9)):
        pass


def exit_with_another_status():
    sys.exit(3)


def print_a_traceback_before_the_error():
    print("Traceback (most recent call last):", file=sys.stderr)
    raise UsageError("no such file")


def print_what_a_terminal_obeys():
    os.write(2, b"error: a\x1b]0;title\x07\n")
    sys.exit(2)


def leave_a_wrong_accuracy():
    Path("out").mkdir()
    Path("out/results.json").write_text('{"accuracy": NaN}')


def leave_a_temporary_file():
    Path("run").mkdir()
    Path("run/.results.json.99.partial").touch()
    raise UsageError("no such file")


FAULTS = {
    hang: "hangs",
    raise_an_error: "KeyError: 'epoch'",
    fill_the_memory: "MB of memory",
    crash: "crashes with signal 9",
    write_outside: "open: changes '../outside/made'",
    write_outside_unseen_by_python: "changes files outside its folder: ['kept', 'made']",
    delete_outside_unseen_by_python: "changes files outside its folder: []",
    write_through_a_link: "open: changes 'link'",
    delete_outside: "os.remove: changes '../outside/kept'",
    move_outside: "os.rename: changes '../outside/made'",
    start_a_process: "subprocess.Popen: starts a process",
    start_a_shell: "os.system: starts a process",
    run_a_text: "exec: runs code of '<string>'",
    run_a_text_and_hide_it: "exec: runs code of '<string>'",
    run_a_file: "foreign.py",
    connect: "connects to ('127.0.0.1', 9)",
    exit_with_another_status: "exit status 3",
    print_a_traceback_before_the_error: "Traceback",
    print_what_a_terminal_obeys: "control characters",
    leave_a_wrong_accuracy: "the accuracy is nan",
    leave_a_temporary_file: "leaves run/.results.json.99.partial behind",
}


def refuse():
    raise UsageError("no such file", "give another")


def write_in_its_folder():
    Path("a/b").mkdir(parents=True)
    Path("a/b/c").write_text("x")
    Path("a/b/c").rename("d")
    Path("d").unlink()


@pytest.mark.slow
def test_faults_of_a_command_are_failures(monkeypatch, tmp_path):
    commands = [*FAULTS, refuse, write_in_its_folder]
    for command in commands:
        monkeypatch.setitem(worker.PROGRAMS, command.__name__, lambda argv, command=command: command())
    monkeypatch.setattr(harness, "SECONDS", 4)
    used = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20  # not the most so far
    monkeypatch.setattr(harness, "MEGABYTES", used + 200)
    counts, failures = harness.fuzz(
        lambda number: Case(commands[number].__name__, []), range(len(commands)), tmp_path / "work", tmp_path / "keep"
    )
    found = {commands[number]: what for number, what in failures}
    assert found.keys() == FAULTS.keys()
    assert [command.__name__ for command, what in FAULTS.items() if what not in found[command]] == []
    totals = Counter()
    for (_, verdict), number in counts.items():
        totals[verdict] += number
    assert totals == {"failure": len(FAULTS), "refused": 1, "accepted": 1}
    assert harness.table(counts).splitlines()[-1].split() == ["all", str(len(commands)), "1", "1", str(len(FAULTS))]
    kept = tmp_path / "keep" / str(commands.index(write_through_a_link))
    assert (kept / "case/link").is_symlink() and "changes 'link'" in (kept / "failure.txt").read_text()


# Inputs


def test_the_number_of_an_input_decides_it():
    tree = {"a": [1, 2.0, "x"], "b": {"c": (True, None)}}
    first, second = (
        [repr(change_tree(Random(f"1 {number}"), tree, Random.random)) for number in range(200)] for _ in range(2)
    )
    assert first == second and len(set(first)) > 100
    assert tree == {"a": [1, 2.0, "x"], "b": {"c": (True, None)}}
    data = bytes(range(256)) * 8
    assert len({change_bytes(Random(number), data) for number in range(200)}) > 150


def test_the_first_inputs_have_every_kind():
    total = sum(share for share, _ in KINDS.values())
    assert {kind_of(number) for number in range(len(KINDS))} == set(KINDS)
    assert Counter(map(kind_of, range(total))) == {name: share for name, (share, _) in KINDS.items()}
