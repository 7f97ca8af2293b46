"""YAML files that are damaged or hostile: one line that names the file and the line, soon."""

import os
import time

import pytest
from dassl.config import CfgNode, get_cfg_default
from dassl.config.yaml_text import MAX_BYTES, MAX_VALUES, parse_yaml
from dassl.utils import MissingFileError, UsageError

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
HOSTILE = {
    "anchor bomb": (BOMB, "line 5 is invalid YAML (more than 20,000 values"),
    "merge bomb": (
        "a0: &a0 {x: 1, y: 2, z: 3}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)),
        "more than 20,000 values",
    ),
    "alias inside itself": ("a: &a [*a]", "line 1 is invalid YAML (the alias *a is undefined, or part of"),
    "too many values": ("a: [" + "1," * (MAX_VALUES + 1) + "]", "more than 20,000 values"),
    "deep flow": ("a: " + "[" * 500_000, "line 1 is invalid YAML"),
    "deep block": ("a:\n" + "- " * 100_000, "line 2 is invalid YAML (more than 50 levels)"),
    "deep mapping": ("a:\n" + "".join(f"{' ' * i}b:\n" for i in range(1, 500)), "more than 50 levels"),
    "!!int x": ("SEED: 1\nOPTIM:\n  MAX_EPOCH: !!int x\n", "line 3 is invalid YAML (not a valid int"),
    "!!float x": ("OPTIM: {LR: !!float x}", "line 1 is invalid YAML (not a valid float"),
    "!!bool x": ("VERBOSE: !!bool x", "line 1 is invalid YAML (not a valid bool)"),
    "!!int ''": ("SEED: !!int ''", "not a valid int"),
    "!!int in a mapping": ("SEED: !!int {=: 0x" + "f" * 5000 + "}", "not a valid int"),
    "!!timestamp x": ("SEED: !!timestamp x", "line 1 is invalid YAML (not a valid timestamp"),
    "no day": ("SEED: 2024-13-45", "line 1 is invalid YAML (not a valid timestamp"),
    "5,000 digits": ("SEED: " + "1" * 5000, "line 1 is invalid YAML (not a valid int of at most 100 characters)"),
    "5,000 hexadecimal digits": ("SEED: 0x" + "f" * 5000, "not a valid int of at most 100 characters"),
    "base 60": ("SEED: 1" + ":1" * 500, "not a valid int of at most 100 characters"),
    "Python object": ("SEED: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "unhashable key": ("{[1]: 2}: 3", "found unhashable key"),
    "control character": ("SEED: '\x01'", "is invalid YAML (unacceptable character"),
    "two documents": ("SEED: 1\n---\nSEED: 2\n", "line 2 is invalid YAML"),
    "long tag": ("SEED: !" + "x" * 100_000 + " 1", "could not determine a constructor"),
}


def merge(file):
    get_cfg_default().merge_from_file(str(file))


@pytest.mark.parametrize(("text", "words"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_refused_in_a_line_at_once(text, words, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    start = time.process_time()
    with pytest.raises(UsageError) as caught:
        merge(file)
    assert words in str(caught.value) and str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert time.process_time() - start < 10


def test_anchors_of_some_repeated_lines_are_read(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(
        "DATALOADER:\n  TRAIN_X: &batch {BATCH_SIZE: 4}\n  TEST: {<<: *batch}\n"
        "INPUT: {PIXEL_MEAN: &half [0.5, 0.5, 0.5], PIXEL_STD: *half}\n"
    )
    cfg = get_cfg_default()
    cfg.merge_from_file(str(file))
    assert cfg.DATALOADER.TRAIN_X.BATCH_SIZE == cfg.DATALOADER.TEST.BATCH_SIZE == 4
    assert cfg.INPUT.PIXEL_STD == [0.5, 0.5, 0.5]


def test_the_largest_text_is_read(tmp_path):
    assert len(parse_yaml("a: " + "x" * (MAX_BYTES - 3), "it")["a"]) == MAX_BYTES - 3
    assert len(parse_yaml("[" + "1, " * (MAX_VALUES - 1) + "]", "it")) == MAX_VALUES - 1


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/full", "/dev/null", "pipe", "folder", "large", "latin-1", "loop"])
@pytest.mark.parametrize("base", [False, True], ids=["file", "_BASE_"])
def test_only_regular_text_files_of_some_size_are_read(place, base, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_text("#" * (MAX_BYTES + 1))
    (tmp_path / "latin-1").write_bytes(b"A: \xe9")
    (tmp_path / "loop").symlink_to("loop")
    file = tmp_path / place
    if base:
        file = tmp_path / "x.yaml"
        file.write_text(f"_BASE_: {place}\n")
    with pytest.raises(UsageError, match=f"cannot read the config file {tmp_path / place}"):
        merge(file)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ('"a\\0b"', "is 'a.x00b': give the path of a file"),
        ("~nosuchuser/x.yaml", "no config file .*~nosuchuser/x.yaml"),
        ("{a: b}", "is {'a': 'b'}: give the path of a file, or a list of paths"),
        ("[{a: b}]", "is {'a': 'b'}: give the path of a file, or a list of paths"),
        ("[[a.yaml]]", "is .'a.yaml'.: give the path of a file"),
        ("2024-01-01", "is datetime.date.*: give the path of a file"),
        ("5", "is 5: give the path of a file"),
        ("[x.yaml]", "include each other"),
    ],
)
def test_base_is_the_path_of_a_file(base, words, tmp_path):
    (tmp_path / "x.yaml").write_text(f"_BASE_: {base}\n")
    with pytest.raises(UsageError, match=words):
        merge(tmp_path / "x.yaml")


def test_base_files_do_not_multiply(tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.yaml").write_text(f"_BASE_: [{i + 1}.yaml, {i + 1}.yaml]\n")
    (tmp_path / "30.yaml").write_text("SEED: 1\n")
    with pytest.raises(UsageError, match=r"0\.yaml includes more than 100 files"):
        merge(tmp_path / "0.yaml")


def test_a_long_text_is_not_evaluated(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("SEED: '0x" + "f" * 5000 + "'\n")  # its decimal digits are more than Python prints
    with pytest.raises(UsageError, match="SEED in .* takes an int, not a str"):
        merge(file)


def test_load_cfg_reads_yaml_and_executes_nothing(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("SEED: 7\n")
    with open(file) as opened:
        assert CfgNode.load_cfg(opened) == {"SEED": 7}
    (tmp_path / "y.py").write_text(f"cfg = dict(a=open({str(tmp_path / 'made')!r}, 'w').close())\n")
    with open(tmp_path / "y.py") as opened, pytest.raises(UsageError, match="y.py"):
        CfgNode.load_cfg(opened)
    assert not (tmp_path / "made").exists()
    with pytest.raises(UsageError, match="the text is not a config: Key A.B"):
        CfgNode.load_cfg("A: {B: 2024-01-01}")
    assert CfgNode.load_cfg("") == {}


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    (tmp_path / ".hidden.yaml").touch()
    with pytest.raises(MissingFileError, match="there is no config file .*nowhere.yaml: check the path"):
        merge(tmp_path / "nowhere.yaml")
    (tmp_path / "here.yaml").touch()
    with pytest.raises(MissingFileError, match="its folder has here.yaml"):
        merge(tmp_path / "nowhere.yaml")
