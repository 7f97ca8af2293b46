"""The documentation: it builds without warnings, its commands can be typed, its notebook runs."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from marks import to_json

from common.start import ROOT
from fit.options import FitRequest, flag_of

pytestmark = pytest.mark.slow

PAGES = [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
ROOMS = (
    "benchmarks",
    "fit",
    "measures",
    "runs",
    "studies",
    "configs",
    "inference",
    "common",
    "datasets",
    "clip",
    "trainers",
    "toolbox/dassl",
)
FILES = [
    ROOT / "train.py",
    ROOT / "parse_test_res.py",
    *(file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))),
]
SOURCES = "".join(file.read_text() for file in FILES)
OF_FIT = {flag_of(one) for one in fields(FitRequest)}


def blocks(page: Path) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)


def test_site_builds_without_warnings(tmp_path):
    for name in ("mkdocs", "material"):
        pytest.importorskip(name, reason="MkDocs Material is not installed: requirements-docs.txt")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    printed = done.stdout + done.stderr
    assert done.returncode == 0 and "WARNING" not in printed and "Aborted" not in printed, printed
    pages = {
        str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.html")
    }
    for name in NAMES:
        page = re.sub("^benchmarks", "project/benchmarks", name).removeprefix("docs/")
        assert page.replace("README.md", "index.md").replace(".md", ".html") in pages
    hour = (tmp_path / "site/first_hour.html").read_text()
    assert "assert_method_works" in hour and "H</th>" not in hour and "| ClassMeans |" in hour
    pictures = re.findall(r'<img[^>]* src="(first_hour_\d\.png)"', hour)
    assert [(tmp_path / "site" / name).is_file() for name in pictures] == [True]
    assert 'href="first_hour.html"' in (tmp_path / "site/install.html").read_text()
    for page in pages:  # nothing is loaded from another server
        text = (tmp_path / "site" / page).read_text()
        assert (
            re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]+)"', text) == []
        ), page


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_valid_shell_and_name_what_exists(page):
    for block in blocks(page):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        called = r"(?:bash|python|-r)\s+((?:scripts|tools|benchmarks)/[\w./-]+|[\w-]+\.(?:py|txt))"
        for name in re.findall(called, block):
            assert (ROOT / name).is_file(), f"{name} in {page}"
        for name in re.findall(r"\b((?:studies|configs)/[\w./+-]+\.yaml)", block):
            assert (ROOT / name).is_file() or page.name == "datasets.md", f"{name} in {page}"
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(
                r"\s*python (?:train|parse_test_res|(?:tools|benchmarks)/\w+)(?:\.py)? ", line
            ):
                for option in re.findall(r" (--[a-z][\w-]+)", line.split("#")[0]):
                    assert f'"{option}"' in SOURCES or option in OF_FIT, f"{option} of {line}"


NOTEBOOK = ROOT / "docs/first_hour.ipynb"


@pytest.mark.thorough
def test_notebook_runs_and_prints_what_it_promises(tmp_path, monkeypatch):
    needed = ("nbformat", "nbclient", "ipykernel")
    nbformat, nbclient, _ = (
        pytest.importorskip(name, reason=f"{name}: requirements-dev.txt") for name in needed
    )
    for variable in ("TMPDIR", "IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    kernels = tmp_path / "JUPYTER_DATA_DIR/kernels/python3"  # that of this interpreter
    kernels.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    to_json(
        kernels / "kernel.json", {"argv": argv, "display_name": "Python 3", "language": "python"}
    )
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        book, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    printed = "".join(
        output.text
        for cell in book.cells
        for output in cell.get("outputs", ())
        if output.get("name") == "stdout"
    )
    for promised in (
        "% of new images right",
        "% of 200 other images",
        '"class": "lake in desert"',
        "mine: 12 of 12 runs",
        "| ClassMeans |",
    ):
        assert promised in printed, printed
    assert (
        sum(
            "image/png" in output.get("data", {})
            for cell in book.cells
            for output in cell.get("outputs", ())
        )
        == 1
    )
    # It writes there, and nowhere else
    assert [folder.name for folder in (tmp_path / "TMPDIR").glob("first-hour-*/*")]
