"""The documentation: it builds without warnings, and its commands can be typed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.start import ROOT

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
    tour = (tmp_path / "site/tour.html").read_text()
    assert "PromptedClassifier" in tour and "layer 11: patches" in tour
    pictures = re.findall(r'<img[^>]* src="(tour_\d\.png)"', tour)
    assert [(tmp_path / "site" / name).is_file() for name in pictures] == [True] * 3
    assert 'href="tour.html"' in (tmp_path / "site/predict.html").read_text()
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
            assert (ROOT / name).is_file() or page.name == "own_classes.md", f"{name} in {page}"
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(
                r"\s*python (?:train|parse_test_res|(?:tools|benchmarks)/\w+)(?:\.py)? ", line
            ):
                for option in re.findall(r" (--[a-z][\w-]+)", line.split("#")[0]):
                    assert f'"{option}"' in SOURCES, f"{option} of {line}"
