"""`python parse_test_res.py DIR`, a habit of CoOp's users, on logs of this project's kind and the
published ones.
"""

import re

import pytest

import parse_test_res
from common.errors import UsageError

TRAINING = """epoch [5/5] batch [10/10] time 0.1 (0.1) loss 0.5 (0.5) acc 100.0 (90.0) lr 1e-5
* accuracy: 11.1%
Finish training
=> result
* total: 4,200
* correct: 3,780
* accuracy: {}%
* macro_f1: 89.5%
Elapsed: 0:01:02
"""
TEST = TRAINING[TRAINING.index("=> result") :]


@pytest.fixture
def runs(tmp_path):
    """`runs({"exp/seed1": 80.0, ...})` writes a log for each."""

    def runs(values, text=TRAINING):
        for place, value in values.items():
            (tmp_path / place).mkdir(parents=True)
            (tmp_path / place / "log.txt").write_text(text.format(value))
        return tmp_path

    return runs


@pytest.fixture
def parse(monkeypatch, capsys):
    """`parse(DIR, options ...)` -> what is printed."""

    def parse(*arguments):
        monkeypatch.setattr("sys.argv", ["parse_test_res.py", *map(str, arguments)])
        parse_test_res.main()
        return capsys.readouterr().out

    return parse


def test_mean_and_deviation_over_seeds_in_their_order(runs, parse):
    root = runs({"seed10": 92.0, "seed9": 90.0, "seed2": 88.0, "seed1": "90.590.5"})
    printed = parse(root)
    assert f"{root}/seed1/log.txt. no result: " in printed
    assert re.findall(r"seed(\d+)/log.txt", printed) == ["1", "2", "9", "10"]
    assert "* accuracy: 90.00% +- 1.63%" in printed and "90.00% +- 1.85%" in parse(root, "--ci95")


def test_logs_of_tests_are_asked_for_and_a_missing_folder_is_named(runs, parse, capsys):
    root = runs({"own/seed1": 80.0, "own/seed2": 82.0}, TEST) / "own"
    assert "* accuracy: 81.00% +- 1.00%" in parse(root, "--test-log")
    for folder, line in (
        (root, "give --test-log if they are logs of tests"),
        (root / "nowhere", "no folder"),
    ):
        with pytest.raises(UsageError, match=line) as caught:
            parse(folder)
        assert str(folder) in str(caught.value)
        assert (f"file: {root}/seed1/log.txt. no result: " in capsys.readouterr().out) == (
            folder == root
        )


def test_other_figures_and_newest_log_of_a_restarted_run(runs, parse):
    root = runs({"seed1": 80.0})
    cut = (root / "seed1/log.txt").read_text()[:100]
    (root / "seed1/log.txt").rename(root / "seed1/log.txt-2026-01-01-00-00-00")
    (root / "seed1/log.txt").write_text(cut)
    (root / "seed1/log.txt-2025-12-31-23-59-59").write_text(TRAINING.format(70.0))  # copied last
    assert "* accuracy: 80.00%" in parse(root)
    assert "* macro_f1: 89.50%" in parse(root, "--keyword", "macro_f1")
    with pytest.raises(UsageError, match=r"log.txt that has \* f1"):
        parse(root, "--keyword", "f1")


SETTINGS = """\
** Arguments **
trainer: {method}
** Config **
DATASET:
  ALL_AS_UNLABELED: False
  NAME: {dataset}
  NUM_SHOTS: {shots}
  SUBSAMPLE_CLASSES: {classes}
MODEL:
  BACKBONE:
    NAME: {backbone}
  HEAD:
    NAME: none
"""
USUAL = {"method": "CoOp", "dataset": "EuroSAT", "shots": 16, "classes": "base", "backbone": "RN50"}


@pytest.mark.parametrize("key", USUAL)
def test_runs_with_different_settings_are_not_averaged(key, runs, parse):
    root = runs({"a/seed1": 80, "a/seed2": 81}, SETTINGS.format(**USUAL) + TRAINING) / "a"
    assert "* accuracy: 80.50%" in parse(root)
    runs({"a/seed3": 90}, SETTINGS.format(**USUAL | {key: "4"}) + TRAINING)
    with pytest.raises(
        UsageError, match=f"differ in the .*{key}.*: 4, {USUAL[key]}|{key}.*: 16, 4"
    ):
        parse(root)
