"""`make fuzz`: a sample of its inputs, and what its limits, its witness and its table report."""

import os
import resource
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from fuzz import __main__, harness, worker  # noqa: F401 - it registers the kinds
from fuzz.cases import KINDS, Case, kind_of
from fuzz.changes import change_bytes, change_tree
from marks import thorough_but

from common.start import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the fuzzer forks, and reads /proc")


@pytest.mark.slow
@pytest.mark.parametrize("count", thorough_but((12,), (12, 100)))
def test_first_inputs_have_no_failure(count, tmp_path):
    command = [sys.executable, "-m", "fuzz", "--count", str(count), "--keep", str(tmp_path)]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (total,) = (line.split()[1:] for line in done.stdout.splitlines() if line.startswith("all"))
    inputs, refused, accepted, failures = map(int, total)
    assert (inputs, failures) == (count, 0) and refused > 0.4 * count and accepted > 0.1 * count


# Faults of a command that the harness must report


def run_a_text_and_hide_it():
    with suppress(BaseException):
        exec("x = 1")


FAULTS = {
    "time.sleep(60)": "hangs",
    "raise KeyError('epoch')": "KeyError: 'epoch'",
    "_ = b'x' * (1 << 30)": "MB of memory",  # more than what a fork leaves out: the pages of mapped files
    "os.kill(os.getpid(), signal.SIGKILL)": "crashes with signal 9",
    "Path('../outside/made').write_text('x')": "open: changes '../outside/made'",
    "ctypes.CDLL(None).fopen(b'../outside/made', b'w')": "changes files outside its folder: ['kept', 'made']",
    "ctypes.CDLL(None).unlink(b'../outside/kept')": "changes files outside its folder: []",
    "Path('link').symlink_to('../outside/kept'); Path('link').write_text('x')": "open: changes 'link'",
    "Path('../outside/kept').unlink()": "os.remove: changes '../outside/kept'",
    "Path('file').touch(); os.rename('file', '../outside/made')": "os.rename: changes '../outside/made'",
    "subprocess.run(['true'], check=True)": "subprocess.Popen: starts a process",
    "os.system('true')": "os.system: starts a process",
    "run_a_text_and_hide_it()": "exec: runs code of '<string>'",
    "Path('foreign.py').write_text('x = 1'); sys.path.insert(0, os.getcwd()); import_module('foreign')": "foreign.py",
    "socket.create_connection(('127.0.0.1', 9))": "connects to ('127.0.0.1', 9)",
    "sys.exit(3)": "exit status 3",
    "print('Traceback (most recent call last):', file=sys.stderr); raise UsageError('no such file')": "Traceback",
    "os.write(2, b'error: a\\x1b]0;title\\x07\\n'); sys.exit(2)": "control characters",
    "Path('out').mkdir(); Path('out/results.json').write_text('{\"accuracy\": NaN}')": "the accuracy is nan",
    "Path('run').mkdir(); Path('run/.results.json.99.partial').touch(); raise UsageError('no such file')": (
        "leaves run/.results.json.99.partial behind"
    ),
}
REFUSED = "raise UsageError('no such file', 'give another')"
ACCEPTED = "Path('a').mkdir(); Path('a/c').write_text('x'); Path('a/c').rename('d'); Path('d').unlink()"


IMPORTS = "import ctypes, os, signal, socket, subprocess, sys, time; from importlib import import_module; "
IMPORTS += "from pathlib import Path; from common.errors import UsageError; "
# Code of this file: the witness knows foreign code by its file.
COMPILED = {code: compile(IMPORTS + code, __file__, "exec") for code in (*FAULTS, REFUSED, ACCEPTED)}


@pytest.mark.slow
def test_faults_of_a_command_are_failures(monkeypatch, capsys, tmp_path):
    commands = [*FAULTS, REFUSED, ACCEPTED]
    for code in commands:
        monkeypatch.setitem(worker.PROGRAMS, code, lambda argv, code=code: eval(COMPILED[code]))
    monkeypatch.setattr(harness, "SECONDS", 2)
    monkeypatch.setattr(harness, "REPORTED", len(commands))
    used = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20  # not the most so far
    monkeypatch.setattr(harness, "MEGABYTES", used + 200)
    counts, failures = harness.fuzz(
        lambda number: Case(commands[number], []), range(len(commands)), tmp_path / "work", tmp_path / "keep"
    )
    done = f"{len(commands)} of {len(commands)} inputs, {len(FAULTS)} failures"
    assert capsys.readouterr().err.splitlines().count(done) == 1
    found = {commands[number]: what for number, what in failures}
    assert found.keys() == FAULTS.keys()
    assert [code for code, what in FAULTS.items() if what not in found[code]] == []
    assert harness.table(counts).splitlines()[-1].split() == ["all", str(len(commands)), "1", "1", str(len(FAULTS))]
    link = next(number for number, code in enumerate(commands) if "symlink" in code)
    kept = tmp_path / "keep" / str(link)
    assert (kept / "case/link").is_symlink() and "changes 'link'" in (kept / "failure.txt").read_text()


# Inputs


def test_the_number_of_an_input_decides_it():
    tree, data = {"a": [1, 2.0, "x"], "b": {"c": (True, None)}}, bytes(range(256)) * 8

    def changed():
        return [repr(change_tree(Random(number), tree, Random.random)) for number in range(200)]

    found = changed()
    assert found == changed() and len(set(found)) > 100
    assert tree == {"a": [1, 2.0, "x"], "b": {"c": (True, None)}}
    assert len({change_bytes(Random(number), data) for number in range(200)}) > 150


def test_the_first_inputs_have_every_kind():
    shares = {name: share for name, (share, _) in KINDS.items()}
    assert {kind_of(number) for number in range(len(KINDS))} == set(KINDS)
    assert Counter(map(kind_of, range(sum(shares.values())))) == shares
