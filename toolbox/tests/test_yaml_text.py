"""YAML files that are damaged or hostile: one line that names the file, soon."""

import time

import pytest
import yaml
from dassl.config import CfgNode, get_cfg_default, yaml_text
from dassl.utils import UsageError

LEVELS = range(1, 24)
HOSTILE = {
    "anchor bomb": (
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in LEVELS),
        "more than 20,000 values",
    ),
    "merge bomb": (
        "a0: &a0 {x: 1, y: 2}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in LEVELS),
        "more than 20,000 values",
    ),
    "deep flow": ("a: " + "[" * 500_000, "is invalid YAML ("),
    "!!int x": ("SEED: 1\nOPTIM:\n  MAX_EPOCH: !!int x\n", "is invalid YAML (invalid literal for int"),
    "Python object": ("SEED: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
}


def merge(file):
    get_cfg_default().merge_from_file(str(file))


@pytest.mark.parametrize("loader", [yaml_text.Loader, yaml.SafeLoader], ids=["libyaml", "python"])
@pytest.mark.parametrize(("text", "words"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_refused_in_a_line_at_once(text, words, loader, tmp_path, monkeypatch):
    monkeypatch.setattr(yaml_text, "Loader", loader)
    file = tmp_path / "x.yaml"
    file.write_text(text)
    start = time.process_time()
    with pytest.raises(UsageError, match=rf"^{file}") as caught:
        merge(file)
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert time.process_time() - start < 10


@pytest.mark.parametrize("text", ["A: 1\nB: 2\nA: 1\n", "B: [{A: 1, 'A': 2}]", "C: &c {A: {B: 1, B: 2}}\nD: *c\n"])
def test_a_key_that_is_there_twice(text, tmp_path):
    with pytest.raises(UsageError, match="line [13] is invalid YAML .the key [AB] is there twice"):
        CfgNode.load_cfg(text)
    (tmp_path / "x.yaml").write_text(text)
    cfg = CfgNode(new_allowed=True)
    cfg.merge_from_file(str(tmp_path / "x.yaml"))  # as with yacs, the last one counts: published files load
    assert cfg


def test_base_is_the_path_of_a_file_and_files_end(tmp_path):
    file = tmp_path / "x.yaml"
    for i in range(30):
        (tmp_path / f"{i}.yaml").write_text(f"_BASE_: [{i + 1}.yaml, {i + 1}.yaml]\n")
    (tmp_path / "30.yaml").write_text("SEED: 1\n")
    file.write_text("_BASE_: x.yaml\n")
    for name in ("0.yaml", "x.yaml"):
        with pytest.raises(UsageError, match=rf"{name} includes more than 100 files, or itself: drop some of _BASE_"):
            merge(tmp_path / name)


def test_load_cfg_reads_yaml_and_executes_nothing(tmp_path):
    file = tmp_path / "x.py"
    for text, words in (
        (f"cfg = dict(a=open({str(tmp_path / 'made')!r}, 'w').close())\n", "x.py is not a config"),
        ("A: {B: 2024-01-01}", "x.py is not a config: Key A.B"),
    ):
        file.write_text(text)
        with open(file) as opened, pytest.raises(UsageError, match=words):
            CfgNode.load_cfg(opened)
    assert not (tmp_path / "made").exists()
    assert (CfgNode.load_cfg(""), CfgNode.load_cfg("SEED: 7\n")) == ({}, {"SEED": 7})
