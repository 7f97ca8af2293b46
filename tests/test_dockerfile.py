"""The Dockerfile, as far as it can be checked without Docker: its files exist, and its command runs from them alone."""

import re

from common.start import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
LINES = re.sub(r"\\\n\s*", "", DOCKERFILE).splitlines()


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
