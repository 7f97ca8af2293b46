"""The documentation: it builds without warnings, its commands can be typed, its guides cover every method."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from dassl.config import get_cfg_default

import trainers
from common.start import ROOT
from experiments.configuration import extend_cfg
from experiments.studies.reproduce import AUTHORS
from experiments.studies.study_file import load

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
STUDIES = (ROOT / "docs/studies.md").read_text()
GUIDES = {"ZeroshotCLIP": "zsclip", "LinearProbe": "lpclip"}  # others have their names in lower case
SOURCES = "".join(
    file.read_text()
    for room in ("experiments", "inference", "common", "datasets/preparing")
    for file in sorted((ROOT / room).rglob("*.py"))
)


def blocks(page: Path) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture
def build(tmp_path):
    """`build(root)` -> what `mkdocs build` prints about the site of a copy of the project; it goes to tmp_path/site."""
    if find_spec("mkdocs") is None or find_spec("material") is None:
        pytest.skip("MkDocs Material is not installed: requirements-docs.txt")

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
    for page in NAMES:
        assert page.removeprefix("docs/").replace("README.md", "project/index.md").replace(".md", ".html") in pages
    for page in pages:  # nothing is loaded from another server
        text = (tmp_path / "site" / page).read_text()
        assert re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]+)"', text) == [], page


@pytest.mark.parametrize("link", ["nowhere.md", "faq.md#no-such-question", "../tools/nowhere.py"])
def test_broken_links_fail_the_build(link, build, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for entry in ROOT.iterdir():
        if entry.name != "docs" and not entry.name.startswith("."):
            (copy / entry.name).symlink_to(entry)
    shutil.copytree(ROOT / "docs", copy / "docs")
    (copy / "docs/index.md").write_text(f"# Index\n\n[a link]({link})\n")
    status, printed = build(copy)
    assert status != 0 and link.partition("#")[0] in printed


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_valid_shell_and_name_what_exists(page):
    for block in blocks(page):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        called = r"(?:bash|python|-r)\s+((?:scripts|tools|benchmarks)/[\w./-]+|[\w-]+\.(?:py|txt))"
        for name in re.findall(called, block):
            assert (ROOT / name).is_file(), f"{name} in {page}"
        for name in re.findall(r"\b((?:studies|configs)/[\w./+-]+\.yaml)", block):
            assert (ROOT / name).is_file() or page.name in ("your_own_data.md", "methods.md"), f"{name} in {page}"
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"\s*python (?:train|tools/\w+)(?:\.py)? ", line):
                for option in re.findall(r" (--[a-z][\w-]+)", line.split("#")[0]):
                    assert f'"{option}"' in SOURCES, f"{option} of {line}"


def test_every_method_and_protocol_has_a_guide_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    keys = [GUIDES.get(name, name.lower()) for name in trainers.methods()]
    keys += ["base2new", "cross_dataset", "domain_generalisation", "few_shot"]
    for key in keys:
        assert f"guides/{key}.md" in navigation and (ROOT / f"docs/guides/{key}.md").is_file(), key
        assert f"({key}.md)" in (ROOT / "docs/guides/index.md").read_text()


def test_figures_in_the_guides_are_the_published_ones():
    for row in AUTHORS:
        text = (ROOT / f"docs/guides/{GUIDES.get(row['method'], row['method'].lower())}.md").read_text()
        assert f"base {row['base']:.2f}, new {row['new']:.2f}, H {row['H']:.2f}" in text, row
        assert row["cfg"] == "*" or row["cfg"].split("4ctx_")[-1] in text, row


def test_settings_named_in_the_guides_exist():
    for page in (ROOT / "docs/guides").glob("*.md"):
        method = next((name for name in trainers.methods() if GUIDES.get(name, name.lower()) == page.stem), "")
        for cfg in re.findall(r"`(vit_b\w*[\w+]*)`", page.read_text()) if method else ():
            folder = trainers.methods()[method].config_folder
            assert (ROOT / f"configs/trainers/{folder}/{cfg}.yaml").is_file(), f"{cfg} in {page.name}"


def test_epochs_in_the_guides_are_those_of_the_yaml_files():
    compared = 0
    for name, method in trainers.methods().items():
        text = (ROOT / f"docs/guides/{GUIDES.get(name, name.lower())}.md").read_text().partition("## What to expect")[0]
        for cfg, epochs in re.findall(r"`(vit_b[\w+]*)`([^`;]*?\d+)\s+epochs?\b", text):
            node = get_cfg_default()
            extend_cfg(node, name)
            node.merge_from_file(ROOT / f"configs/trainers/{method.config_folder}/{cfg}.yaml")
            assert int(re.findall(r"\d+", epochs)[-1]) == node.OPTIM.MAX_EPOCH, f"{cfg} in the guide of {name}"
            compared += 1
    assert compared > 10


def test_the_number_of_methods_is_right():
    others = len(trainers.methods()) - 1
    for name in ("docs/index.md", "mkdocs.yml"):
        assert re.findall(r"(\w+) other methods", (ROOT / name).read_text()) == [str(others)], name
    first_page = (ROOT / "README.md").read_text().split("## The demo")[0]
    for name in trainers.methods():
        called = {"ZeroshotCLIP": "zero-shot CLIP", "LinearProbe": "linear probe"}.get(name, name)
        assert called in first_page, name


def test_studies_are_listed_with_their_numbers():
    rows = re.findall(
        r"^\| `(\w+\.yaml)` \| .* \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", STUDIES, re.MULTILINE
    )
    files = sorted((ROOT / "studies").glob("*.yaml"))
    assert [name for name, *_ in rows] == [file.name for file in files]
    for file, (_, *numbers) in zip(files, rows, strict=True):
        study = load(file)
        runs = study.runs()
        data = study.datasets or study.targets
        sizes = [str(len(part)) for part in (data, study.variants, study.seeds)]
        trainings = sum(run.trains for run in runs)
        assert numbers == [sizes[1], sizes[0], sizes[2], str(trainings), str(len(runs))], file.name
        for said in re.findall(r"(\d+) datasets x (\d+) methods x (\d+) seeds", file.read_text()):
            assert list(said) == sizes, file.name
    words = re.search(
        r"python tools/study.py run studies/base2new.yaml  # (.*)", (ROOT / "docs/guides/base2new.md").read_text()
    )
    study = load(ROOT / "studies/base2new.yaml")
    assert words[1] == f"{len(study.datasets)} datasets, {len(study.variants)} methods, {len(study.seeds)} seeds"
