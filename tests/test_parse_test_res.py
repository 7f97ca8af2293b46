"""`python parse_test_res.py DIR`, a habit of CoOp's users, on logs of this project's kind and the published ones."""

import re

import pytest

import parse_test_res

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
TEST = """Loading weights to prompt_learner
=> result
* total: 100
* correct: 80
* accuracy: {}%
* macro_f1: 79.0%
"""


@pytest.fixture
def runs(tmp_path):
    """`runs(text, {"exp/seed1": 80.0, ...})` writes a log for each."""

    def runs(text, values):
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
    root = runs(TRAINING, {"seed10": 92.0, "seed9": 90.0, "seed2": 88.0})
    printed = parse(root)
    assert [match[1] for match in re.finditer(r"seed(\d+)/log.txt", printed)] == ["2", "9", "10"]
    assert "* accuracy: 90.00% +- 1.63%" in printed and "90.00% +- 1.85%" in parse(root, "--ci95")


def test_logs_of_tests_are_asked_for(runs, parse, capsys):
    root = runs(TEST, {"own/seed1": 80.0, "own/seed2": 82.0}) / "own"
    assert "* accuracy: 81.00% +- 1.00%" in parse(root, "--test-log")
    with pytest.raises(SystemExit) as caught:
        parse(root)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert f"file: {root}/seed1/log.txt. no result: " in printed.out
    assert f"no finished run in {root}: " in printed.err and "give --test-log if they are logs of tests" in printed.err


def test_several_experiments_are_averaged(runs, parse):
    root = runs(TRAINING, {"a/seed1": 80.0, "a/seed2": 90.0, "b/seed1": 60.0})
    printed = parse(root, "--multi-exp")
    assert "* accuracy: 85.00% +- 5.00%" in printed
    assert printed.endswith("Average performance\n* accuracy: 72.50%\n")


def test_other_figures_and_newest_log_of_a_restarted_run(runs, parse):
    root = runs(TRAINING, {"seed1": 80.0})
    cut = (root / "seed1/log.txt").read_text()[:100]
    (root / "seed1/log.txt").rename(root / "seed1/log.txt-2026-01-01-00-00-00")
    (root / "seed1/log.txt").write_text(cut)
    assert "* accuracy: 80.00%" in parse(root)
    assert "* macro_f1: 89.50%" in parse(root, "--keyword", "macro_f1")


def test_missing_folder_is_named(tmp_path, parse, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(tmp_path / "nowhere")
    assert caught.value.code == 2
    assert f"no folder {tmp_path}/nowhere" in capsys.readouterr().err


def test_value_that_cannot_be_a_number_is_left_out(runs, parse):
    root = runs(TRAINING, {"seed1": "90.590.5", "seed2": 80.0})
    printed = parse(root)
    assert f"{root}/seed1/log.txt. no result: " in printed and "* accuracy: 80.00% +- 0.00%" in printed
