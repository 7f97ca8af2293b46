"""Methods that answer for many images together: runs, streams, predictions, and refusals."""

import csv
import json

import numpy as np
import pytest
import torch
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from drawn import arguments, make_cfg, section_pairs
from marks import golden_cases, of_json, one_line, thorough_but

from common.names import with_spaces
from common.results import read_results
from inference import predict
from measures.results import summary_line
from trainers import methods
from trainers.base import streams
from trainers.base.together import Task

pytestmark = pytest.mark.slow
METHODS = [name for name, method in methods().items() if method.is_transductive]


def pytest_generate_tests(metafunc):
    golden_cases(metafunc, "samplers")


def test_batches_streams_and_tasks_are_those_of_the_published_samplers(samplers):
    case = samplers
    labels = np.random.default_rng(case["label_seed"]).integers(0, case["classes"], case["n"])
    seed = case["seed"]
    if case["kind"] == "batch":
        k = case.get("num_class_eff", case["classes"])
        k_eff = case.get("num_class_eff_min", k), case.get("num_class_eff_max", k)
        found = streams.batches(labels, case["batch_size"], k_eff, case["batches"], seed)
        assert [part.tolist() for part in found] == case["indices"]
    elif case["kind"] == "task":
        found = streams.tasks(labels, case["n_query"], (3, 10), case["tasks"], seed)
        assert [part.tolist() for part in found] == case["indices"]
    else:
        shares_seed = case.get("dirichlet_seed", 0)
        found = streams.dirichlet(labels, case["batch_size"], case["gamma"], seed, shares_seed)
        assert found.tolist() == case["stream"]


@pytest.fixture
def make(eurosat, tiny, tmp_path):
    def make(method, *pairs, output="run"):
        set_random_seed(1)
        trainer = build_trainer(make_cfg(method, eurosat, tiny, tmp_path / output, *pairs))
        trainer.set_model_mode("eval")
        return trainer

    return make


def answers_of(trainer):
    """The logits of a test by the path of their image, and the labels."""
    with torch.no_grad():
        parts = list(trainer.test_outputs(trainer.test_loader))
    items = trainer.test_loader.dataset.data_source
    logits = torch.cat([logits for logits, _ in parts])
    labels = torch.cat([labels for _, labels in parts])
    assert labels.tolist() == [item.label for item in items]
    return {item.impath: row for item, row in zip(items, logits, strict=True)}, parts


@pytest.mark.parametrize("method", thorough_but(("StatA", "ZLaP"), METHODS))
def test_another_order_gives_the_same_answers(method, make):
    trainer = make(method)
    expected, _ = answers_of(trainer)
    loader = trainer.test_loader
    loader.dataset.data_source = loader.dataset.data_source[::-1]
    found, _ = answers_of(trainer)
    for path, row in expected.items():
        assert torch.allclose(found[path].exp(), row.exp(), atol=1e-4)


def test_a_batch_is_answered_without_the_others(make):
    trainer = make(
        "StatA", "TEST.STREAM", "batches", "TEST.STREAM_BATCH", 6, "TEST.STREAM_TASKS", 3
    )
    _, parts = answers_of(trainer)
    assert [len(labels) for _, labels in parts] == [6, 6, 4]
    items = trainer.test_loader.dataset.data_source
    method = trainer.method
    features, _ = method.labelled(items[:6], trainer.test_loader)
    alone = method.predict_task(Task.of(features, method.texts))
    assert torch.allclose(parts[0][0].exp(), alone.exp(), atol=1e-5)


def test_a_stream_is_of_the_tested_split(make):
    pairs = "TEST.STREAM", "batches", "TEST.STREAM_BATCH", 6, "TEST.STREAM_TASKS", 2
    trainer = make("StatA", *pairs)
    assert len(trainer.val_loader.dataset) == len(trainer.dm.val_loader.dataset)
    assert trainer.test_loader.dataset.part_sizes == [6, 6]
    trainer = make("StatA", *pairs, "TEST.SPLIT", "val", output="val")
    assert trainer.val_loader.dataset.part_sizes == [6, 6]


def test_over_a_trained_run(make, launch, eurosat, tiny, tmp_path):
    coop = ["OPTIM.MAX_EPOCH", 2, *section_pairs("CoOp", {"N_CTX": 4})]
    run = arguments(eurosat, tiny, tmp_path / "coop", *coop, trainer="CoOp", config="small")
    launch.works(*run)
    over = section_pairs("TransCLIP", {"OVER": str(tmp_path / "coop")})
    trainer = make("TransCLIP", *over, output="over")
    prior = trainer.method.prior_of(trainer.test_loader.dataset.data_source, trainer.test_loader)
    base = trainer.method.base
    with torch.no_grad():
        batch = next(iter(trainer.test_loader))["img"]
        logits = base.model_inference(batch)
    assert torch.allclose(prior[: len(logits)], logits.softmax(dim=1), atol=1e-5)
    own = arguments(eurosat, tiny, tmp_path / "own", *over, trainer="TransCLIP", config="small")
    launch.works(*own)
    results = of_json(tmp_path / "own/results.json")
    used = results["data_use"]
    assert used["kind"] == "transductive" and used["fit"][0]["split"] == "train"
    assert results["method"] == used["method"] == "TransCLIP+CoOp"
    assert summary_line(read_results(tmp_path / "own")).startswith("TransCLIP+CoOp on ")
    over = section_pairs("StatA", {"OVER": str(tmp_path / "own")})
    folder = tmp_path / "refused"
    line = arguments(eurosat, tiny, folder, *over, trainer="StatA", config="small")
    assert "check TRAINER.STATA.OVER" in launch(*line).error
    assert not folder.exists()
    folder.mkdir()
    assert launch(*line).status == 2 and folder.is_dir()


def test_too_few_images_for_a_task_are_refused():
    labels = np.arange(40) % 4
    with one_line("no 2 classes have 30 test images", "lower TEST.STREAM_BATCH"):
        streams.tasks(labels, 30, (2, 2), 3, 1)


def test_a_stream_may_have_another_order(make):
    orders = {}
    for kind in ("in order", "dirichlet"):
        trainer = make("TDA", "TEST.STREAM", kind, "TEST.STREAM_BATCH", 4, output=kind)
        orders[kind] = [item.impath for item in trainer.test_loader.dataset.data_source]
    assert sorted(orders["in order"]) == sorted(orders["dirichlet"])
    listed = [item.impath for item in trainer.dm.test_loader.dataset.data_source]
    assert orders["in order"] == listed != orders["dirichlet"]


TOGETHER = [name for name, method in methods().items() if method.is_transductive]


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
    options = ["--transductive", method, *([] if over else words)]
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
def test_a_file_marks_joint_answers(method, photos, deep, command, tmp_path):
    file = tmp_path / "answers.csv"
    words = ["--backbone", deep, "--classes", "red", "blue", "green", "--to", file]
    command.works(predict, photos, "--transductive", method, *words)
    with open(file, newline="") as text:
        rows = list(csv.DictReader(text))
    assert {(row["model"], row["together"]) for row in rows} == {(method, "5")}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("CoOp",), "there is no method for --transductive 'CoOp': known are EMDirichlet"),
        (("StatA", "--unknown"), "--transductive has no calibration and no files of 10,000"),
        (("StatA", "--to", "answers/"), "and name a file by --to"),
    ],
)
def test_refused(words, line, photos, deep, command):
    names = "--classes", "red", "blue"
    done = command(predict, "--backbone", deep, photos, *names, "--transductive", *words)
    assert line in done.error


def test_models_unfit_as_a_prior_are_refused(photos, finished, command):
    coop = finished("CoOp")
    lines = {
        ("ZLaP", coop): "ZLaP reads the answers of no other method: leave out the model",
        ("StatA", coop, coop): "--transductive answers over one model: leave out the others",
        ("StatA", finished("TDA")): "is of TDA, which answers from test images itself",
    }
    for (method, *models), line in lines.items():
        names = ["--classes", "red", "blue"] if len(models) == 1 else []
        done = command(predict, *models, photos, *names, "--transductive", method)
        assert line in done.error, done
    one = photos / "b.png"
    done = command(predict, coop, one, "--transductive", "StatA")
    assert "StatA+CoOp answers for at least 4 images together, and 1 could" in done.error
