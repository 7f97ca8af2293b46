"""Predictions for all images of a folder together."""

import csv
import json

import numpy as np
import pytest
from drawn import section_pairs
from marks import thorough_but

from common.names import with_spaces
from inference import predict
from trainers import methods

pytestmark = pytest.mark.slow
TOGETHER = [name for name, method in methods().items() if method.together]


@pytest.mark.parametrize(("method", "over"), [("StatA", "CoOp"), ("TransCLIP", ""), ("ZLaP", "")])
def test_answers_are_those_of_a_run(method, over, finished, eurosat, deep, command, tmp_path):
    settings = {"PREC": "fp32"} | ({"OVER": str(finished(over))} if over else {})
    run = finished(method, "base", "TEST.SAVE_LOGITS", True, *section_pairs(method, settings))
    with np.load(run / "predictions.npz") as arrays:
        expected = np.exp(arrays["logits"].astype(float))
        names = with_spaces(arrays["class_names"].tolist())
        files = [f"{eurosat}/{path}" for path in arrays["image"]]
    expected /= expected.sum(axis=1, keepdims=True)
    words = ["--template", "a centered satellite photo of {}.", "--classes", *names]
    model = [finished(over)] if over else ["--backbone", deep]
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    options = ["--together", method, *([] if over else words)]
    done = command(predict, *model, *files, broken, *options, "--json")
    assert done.status == 1
    rows = json.loads(done.printed)
    name = f"{method}+{over}" if over else method
    facts = [(row["image"], row["model"], row["together"]) for row in rows]
    assert facts == [(file, name, len(files)) for file in files]
    probabilities = [{pair["class"]: pair["probability"] for pair in row["top"]} for row in rows]
    found = np.array([[row[name] for name in names] for row in probabilities])
    assert np.abs(found - expected).max() < 1e-4
    assert f"{name} answered {len(files)} images together: beside other" in " ".join(done.errors)


@pytest.mark.parametrize("method", thorough_but(("TransCLIP", "EMDirichlet"), TOGETHER))
def test_a_file_says_that_the_answers_are_joint(method, photos, deep, command, tmp_path):
    file = tmp_path / "answers.csv"
    words = ["--backbone", deep, "--classes", "red", "blue", "green", "--to", file]
    command.works(predict, photos, "--together", method, *words)
    with open(file, newline="") as text:
        rows = list(csv.DictReader(text))
    assert {(row["model"], row["together"]) for row in rows} == {(method, "5")}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("CoOp",), "there is no method for --together 'CoOp': known are EMDirichlet"),
        (("StatA", "--unknown"), "--together has no calibration and no files of 10,000"),
        (("StatA", "--to", "answers/"), "and name a file by --to"),
    ],
)
def test_refused(words, line, photos, deep, command):
    names = "--classes", "red", "blue"
    done = command(predict, "--backbone", deep, photos, *names, "--together", *words)
    assert line in done.error


def test_models_that_cannot_be_the_prior_are_refused(photos, finished, command):
    coop = finished("CoOp")
    lines = {
        ("ZLaP", coop): "ZLaP reads the answers of no other method: leave out the model",
        ("StatA", coop, coop): "--together answers over one model: leave out the others",
        ("StatA", finished("TDA")): "is of TDA, which answers from test images itself",
    }
    for (method, *models), line in lines.items():
        names = ["--classes", "red", "blue"] if len(models) == 1 else []
        done = command(predict, *models, photos, *names, "--together", method)
        assert line in done.error, done
    one = photos / "b.png"
    done = command(predict, coop, one, "--together", "StatA")
    assert "StatA+CoOp answers for at least 4 images together, and 1 could" in done.error
