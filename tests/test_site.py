"""The documentation: it builds without warnings, its commands can be typed, its tables cover every method."""

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
ROOMS = ("benchmarks", "experiments", "inference", "common", "datasets", "clip", "trainers", "toolbox/dassl")
FILES = [
    ROOT / "train.py",
    ROOT / "parse_test_res.py",
    *(file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))),
]
SOURCES = "".join(file.read_text() for file in FILES)

# How the commands below each heading are tried: by the test of this name, or why they are not run.
INSTALLS = "it installs packages or needs a service; the files that it names exist"
DOWNLOADS = "it downloads images or weights; tests run the same commands on drawn images and small weights"
MODELS = "it names models of the reader; tests run the same commands on theirs"
HOW = {
    "README.md": {
        "Install": INSTALLS,
        "Quick start: name the classes": "test_docs",
        "Quick start: own classes": "test_docs",
        "Quick start: compare methods": "test_docs",
        "Use a model": MODELS,
    },
    "benchmarks/README.md": {"On a GPU": "it needs a GPU; tests/test_benchmarks.py runs a part on a CPU"},
    "docs/add_a_method.md": {"Prompts": "test_docs"},
    "docs/backbones.md": {"Backbones": DOWNLOADS},
    "docs/calibration.md": {"Calibration, sets and unknown images": MODELS},
    "docs/datasets.md": dict.fromkeys(("The datasets", "Manual downloads", "Which images does a run use?"), DOWNLOADS),
    "docs/install.md": dict.fromkeys(("Install", "Size, and CPU wheels", "Without a network"), INSTALLS),
    "docs/methods.md": {"Methods on features": DOWNLOADS},
    "docs/own_classes.md": {
        "Own classes": "test_docs",
        "One method at a time": "test_docs",
        "Check the images": "test_image_folder",
        "More images": "test_image_folder",
        "Class names and sentences": "test_sentences",
        "A dataset of your own name": DOWNLOADS,
    },
    "docs/predict.md": {
        **dict.fromkeys(("Predict", "Export", "Inspect"), MODELS),
        **dict.fromkeys(("On the Hugging Face Hub", "In a container"), INSTALLS),
        **dict.fromkeys(("Serve without this project", "Serve a page", "A service with JSON"), MODELS),
    },
    "docs/predictions.md": {"Compare two methods": MODELS},
    "docs/reproduce.md": {
        **dict.fromkeys(("One dataset, several seeds", "A complete table", "Cross-dataset transfer"), DOWNLOADS),
        **dict.fromkeys(("Domain generalisation", "Few-shot learning", "Settings of each method"), DOWNLOADS),
        **dict.fromkeys(("Official checkpoints", "The published commands"), DOWNLOADS),
    },
    "docs/running.md": {**dict.fromkeys(("Scripts", "train.py", "Settings"), DOWNLOADS), "Trackers": INSTALLS},
    "docs/small_world.md": {"Figures": "it takes hours; test_study runs small studies"},
    "docs/studies.md": {
        "Studies and clusters": DOWNLOADS,
        **dict.fromkeys(("Several machines with Ray", "Slurm with Ray"), "it needs several machines"),
    },
    "docs/tour_of_the_code.md": {"A tour of the code": "test_tour"},
}


def blocks(page: Path) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)


def test_every_block_of_commands_is_run_by_a_test_or_has_a_reason():
    for page, name in zip(PAGES, NAMES, strict=True):
        heading, headings = "", set()
        text = re.sub(r"```(\w*)\n.*?```", r"```\1\n", page.read_text(), flags=re.DOTALL)
        for title, block in re.findall(r"^#+ (.*)$|^```(bash)$", text, re.MULTILINE):
            heading = title or heading
            headings |= {heading} if block else set()
        assert headings == set(HOW.get(name, ())), name
    tests = [how for page in HOW.values() for how in page.values() if " " not in how]
    assert tests and all((ROOT / f"tests/{test}.py").is_file() for test in tests)


@pytest.fixture
def build(tmp_path):
    """`build(root)` -> what `mkdocs build` prints about the site of a copy of the project; it goes to tmp_path/site."""
    for name in ("mkdocs", "material"):
        pytest.importorskip(name, reason="MkDocs Material is not installed: requirements-docs.txt")

    def build(root):
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
        env = os.environ | {"NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return build


def test_site_builds_without_warnings(build, tmp_path):
    status, printed = build(ROOT)
    assert status == 0 and "WARNING" not in printed and "Aborted" not in printed, printed
    pages = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.html")}
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
        assert re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]+)"', text) == [], page


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
            if re.match(r"\s*python (?:train|parse_test_res|(?:tools|benchmarks)/\w+)(?:\.py)? ", line):
                for option in re.findall(r" (--[a-z][\w-]+)", line.split("#")[0]):
                    assert f'"{option}"' in SOURCES, f"{option} of {line}"
