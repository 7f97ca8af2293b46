"""The Dockerfile, as far as it can be checked without Docker: its files exist, and its command runs from them alone."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import closing

import pytest

from common.start import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
LINES = re.sub(r"\\\n\s*", "", DOCKERFILE).splitlines()
COMMAND = json.loads(next(line for line in LINES if line.startswith("ENTRYPOINT")).partition(" ")[2])


def copied() -> list[str]:
    return [name for line in LINES if line.startswith("COPY ") for name in line.split()[1:-1]]


def test_files_exist_and_docker_does_not_ignore_them():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*" and "tools" in copied()
    for name in copied():
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored or re.match(r"requirements.*\.txt", name), name
    assert ROOT.joinpath("requirements-serve.txt").read_text().splitlines()[1] == "-r requirements.txt"
    for name in re.findall(r"-r (\S+)", DOCKERFILE):
        assert name in copied()


@pytest.mark.slow
@pytest.mark.thorough
def test_command_serves_with_the_copied_files_alone(tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed (requirements-serve.txt)")
    for name in copied():
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    with closing(socket.create_server(("", 0))) as listener:
        port = listener.getsockname()[1]
    call = [sys.executable, *COMMAND[1:], "--port", str(port), "--backbone", "small", "--classes", "cat", "dog"]
    env = {"PYTHONPATH": str(tmp_path / "toolbox"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(call, cwd=tmp_path, env=env, text=True, **pipes) as server:
        opened = next((line for line in server.stdout if line.startswith("Open http://")), "")
        server.send_signal(getattr(signal, re.search(r"^STOPSIGNAL (\w+)$", DOCKERFILE, re.MULTILINE)[1]))
        printed, errors = server.communicate(timeout=60)
    assert opened, errors
    assert "Stopped." in printed and server.returncode == 0, errors
