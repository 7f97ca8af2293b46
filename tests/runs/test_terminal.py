"""The view of a person at a terminal, and the log of a run for programs."""

import io
import re
import sys

import pytest
from drawn import arguments

from common.results import RunResult
from measures.results import chance_hint, summary_line
from train import main


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def watched(monkeypatch):
    """`watched(*arguments)` runs train.py in this process on a terminal, and returns what that
    shows.
    """

    def watched(*argv):
        screen = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", screen)
            patch.setattr(sys, "stderr", screen)
            main([str(argument) for argument in argv])
        return screen.getvalue()

    return watched


def published_result(log, signal):
    """As CoOp's parse_test_res.py reads a log: the results in the lines after one that is the
    signal.
    """
    return re.findall(r"\* accuracy: ([\.\deE+-]+)%", log.partition(f"\n{signal}\n")[2])


@pytest.mark.slow
def test_terminal_has_few_lines_and_the_log_has_the_published_ones(
    watched, eurosat, tiny, tmp_path
):
    shown = watched(*arguments(eurosat, tiny, tmp_path, "OPTIM.LR", 0.002))
    log = (tmp_path / "log.txt").read_text()
    lines = re.findall(
        r"^epoch \[(\d)/2\] batch \[(\d)/(\d)\] time .* loss \S+ \(\S+\) acc .* lr .* eta .*$",
        log,
        re.M,
    )
    assert [(epoch, batch == last) for epoch, batch, last in lines] == [("1", True), ("2", True)]
    (accuracy,) = published_result(log, "Finish training")
    assert f"* accuracy: {accuracy}%" in shown
    assert "epoch [" not in shown and "Configuration:" not in shown and shown.count("\n") < 64
    assert "Configuration:" in log and "  LR: 0.002" in log and "Environment:" in log
    assert log.count("Checkpoint saved to ") == 2 and "Checkpoint saved" not in shown
    assert f"Checkpoints: {tmp_path}/MultiModalPromptLearner\n" in shown
    settings = re.search(
        r"^MPL on EuroSAT\. Settings that differ from .*\n((?:  .*\n)+)All settings: ", shown, re.M
    )[1]
    changed = {line.split()[0]: line for line in settings.splitlines()}
    assert changed["OPTIM.LR"].split()[1:] == ["0.002", "(was", "0.0035)"]
    assert {
        "DATASET.NUM_SHOTS",
        "OPTIM.MAX_EPOCH",
        "TRAINER.MPL.PROMPT_DEPTH",
        "SEED",
    } < changed.keys()
    assert (
        not {"OPTIM.WARMUP_EPOCH", "TRAINER.MPL.N_ADD_OP", "OPTIM.NAME", "MODEL.BACKBONE.SHA256"}
        & changed.keys()
    )


@pytest.mark.parametrize(
    ("facts", "run"),
    [
        ({"shots": 1, "seed": 0}, "CoOp on EuroSAT 1 shots seed 0"),
        ({"method": "TDA+CoOp"}, "TDA+CoOp on EuroSAT"),
    ],
)
def test_a_result_prints_one_line(facts, run):
    tested = {"accuracy": 50.0, "n_test": 1234, "dataset": "EuroSAT", "classes": "new"}
    line = summary_line(RunResult(trainer="CoOp", **tested, **facts))
    assert line == f"{run}: 50.00% on 1,234 test images of new classes"


def test_an_accuracy_below_chance_has_a_hint():
    assert chance_hint(None, 4) == chance_hint(25.0, 4) == []
    (line,) = chance_hint(24.9, 4)
    assert line.startswith("Guessing gives 25.00%: check that each class name")


def test_quiet_prints_the_result_only(watched, launch, eurosat, tiny, tmp_path):
    printed = watched(*arguments(eurosat, tiny, tmp_path / "one", options=["--quiet"]))
    result, model, *more = printed.splitlines()
    accuracy = re.fullmatch(
        r"MPL on EuroSAT 2 shots seed 1: ([\d.]+)% on 24 test images of all classes", result
    )[1]
    assert model == f"Model: {tmp_path}/one; next: python tools/predict.py {tmp_path}/one IMAGES"
    assert len(more) == (float(accuracy) < 100 / 6)  # a hint below chance
    log = (tmp_path / "one/log.txt").read_text()
    assert model in log and len(published_result(log, "Finish training")) == 1
    ended = launch(
        *arguments(eurosat, tmp_path / "none.pt", tmp_path / "three", options=["--quiet"])
    )
    assert ended.error and not ended.printed
