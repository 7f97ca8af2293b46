"""Learned prompts are used with the weights and the classes that they were learned on, or refused
in one line.
"""

import re
import shutil
from dataclasses import replace
from itertools import product

import pytest
import torch
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import load_checkpoint, save_checkpoint
from drawn import arguments
from finished import finish
from marks import of_json, one_line, times, to_json
from safetensors.torch import load_file, save_file
from torch import nn

from clip.random_weights import random_tensor
from common.errors import UsageError
from common.files import checksum
from inference import export, predict
from inference.classifier import PromptedClassifier
from inference.inspection import command as inspect_command
from inference.load import load as load_classifier
from inference.load import read_model
from inference.options import LoadOptions
from studies.plan import load
from studies.progress import collect_results
from trainers.base import Method
from trainers.base.prompts import TemplatePrompts

pytestmark = pytest.mark.slow


@pytest.fixture
def backbone(tiny, tmp_path):
    """A file that a test may replace by one with other weights."""
    (tmp_path / "clip.safetensors").write_bytes(tiny.read_bytes())
    return tmp_path / "clip.safetensors"


def other_weights(file):
    state = {
        key: value + 0.01 * random_tensor(f"other {key}", value.shape)
        for key, value in load_file(file).items()
    }
    save_file(state, file)


@pytest.fixture
def train(launch, eurosat, backbone, tmp_path):
    """`train(folder, classes, *options)` runs train.py with CoOp."""

    def train(folder, classes="base", *options, overrides=()):
        overrides = "DATASET.SUBSAMPLE_CLASSES", classes, *overrides
        own = {"trainer": "CoOp", "config": "small", "options": options}
        return launch(*arguments(eurosat, backbone, tmp_path / folder, *overrides, **own))

    return train


@pytest.fixture
def run(train, tmp_path):
    """The folder of a finished run."""
    assert train("a").status == 0
    return tmp_path / "a"


HOLDS = (
    "{run} holds a run with other weights: {file} had SHA-256 {before:.12}..., now it has "
    "{now:.12}...: restore {file}"
)


def test_a_run_refuses_other_weights_under_the_same_name(
    run, train, tiny, backbone, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for again, folder, options, words in (
        ("c", "b", ["--eval-only", "--model-dir", "a"], "has prompts for other weights: SHA-256"),
        ("d", "b", ["--resume", "a"], HOLDS.replace("{run}", "a")),
        ("a", "a", [], HOLDS),
        ("a", "a", ["--skip-finished"], HOLDS),
    ):
        backbone.write_bytes(tiny.read_bytes())
        same = train(again, "base", *options)
        assert same.status == 0 and "on which weights" not in same.printed
        before = checksum(backbone)
        changed = times(run)
        other_weights(backbone)
        expected = words.format(run=run, file=backbone, before=before, now=checksum(backbone))
        assert expected in train(folder, "base", *options).error
        assert times(run) == changed


@pytest.mark.parametrize(
    "damage",
    [
        lambda facts: facts.update(weights_sha256=[1]),
        lambda facts: facts["fit"][0].update(images=2**53),
    ],
)
def test_damaged_metadata_is_refused_before_a_resume(damage, run, train):
    """Its SHA-256 was a list, and the message about it a traceback."""
    (file,) = run.glob("*/model.pth.tar-2")
    checkpoint = load_checkpoint(str(file))
    damage(checkpoint["metadata"])
    save_checkpoint(checkpoint, str(file.parent))
    assert (
        "metadata of the run's checkpoints is damaged" in train("b", "base", "--resume", run).error
    )


def test_a_finished_run_with_deleted_weights_is_skipped(run, train, backbone):
    backbone.unlink()
    assert train("a", "base", "--skip-finished").status == 0


def test_stated_weights_are_the_only_ones_accepted(train, backbone, tmp_path):
    stated = "MODEL.BACKBONE.SHA256", checksum(backbone).upper()
    assert train("a", "base", "--no-train", overrides=stated).status == 0
    other_weights(backbone)
    error = train("b", "base", "--no-train", overrides=stated).error
    assert (
        f"{backbone} has {checksum(backbone)}: give the file with that checksum by --backbone"
        in error
    )
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("method", ["CoOp", "ZeroshotCLIP"])
def test_predict_inspect_and_export_refuse_other_weights(
    method, train, command, photos, backbone, tmp_path
):
    argv = () if method == "CoOp" else ("--trainer", method)
    assert train("a", "base", *argv).status == 0
    other_weights(backbone)
    for tool, *argv in (
        (predict, tmp_path / "a", photos / "a.jpg"),
        (export, tmp_path / "a", "--to", tmp_path / "exported"),
        (inspect_command, tmp_path / "a", "--output", tmp_path / "inspected"),
    ):
        ended = command(tool, *argv, "--classes", "red", "blue")
        assert (
            f"{backbone} has {checksum(backbone):.16}...: give the same weights by --backbone"
            in ended.error
        )
        assert ended.printed == ""
    assert not (tmp_path / "exported").exists() and not (tmp_path / "inspected").exists()
    with one_line("restore that file"):  # as tools/serve.py opens it
        load_classifier(
            tmp_path / "a", LoadOptions(backbone=str(backbone), class_names=["red", "blue"])
        )


def test_a_study_refuses_a_test_of_another_checkpoint(study_file):
    study = load(study_file("out", protocols=["base2new"], trainers={"CoOp": "small"}))
    training, test = study.runs()
    (training.folder / "prompt_learner").mkdir(parents=True)
    file = training.folder / "prompt_learner/model.pth.tar-3"
    file.write_bytes(b"of an earlier training run")
    finish(test, 50.0, trainer="CoOp", checkpoint_sha256=checksum(file), tested_epoch=3)
    assert collect_results(study)
    file.write_bytes(b"of another one")
    with one_line(f"{test.folder} holds a test of another checkpoint, of epoch 3, than {file}"):
        collect_results(study)


@pytest.mark.parametrize(("dataset", "known"), [("EuroSAT", {0: 1}), ("another", {}), (None, {})])
def test_some_classes_of_another_dataset_are_not_taken_by_their_names(dataset, known, build):
    trainer = build("CoOp").method
    first, *_ = trainer.class_names
    written = {"class_names": ["other", first]} | ({"dataset": dataset} if dataset else {})
    assert trainer.checkpoints.classes(written).checkpoint_labels == known
    every = trainer.checkpoints.classes(
        written | {"class_names": ["other", *trainer.class_names]}
    ).checkpoint_labels
    # Of any dataset
    assert every == {label: label + 1 for label in range(len(trainer.class_names))}


def test_class_specific_contexts_start_no_training_on_other_classes(train, tmp_path):
    csc = "TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", ""
    assert train("base", overrides=csc).status == 0
    file = tmp_path / "base/prompt_learner/model.pth.tar-2"
    start = *csc, "MODEL.INIT_WEIGHTS", file
    error = train("other", "new", overrides=start).error
    assert (
        "ctx with values for each class" in error and "start from a run on these classes" in error
    )
    assert not (tmp_path / "other").exists()
    assert train("same", overrides=start).status == 0


class Pairs(Method):
    """A method with a value for each pair of classes."""

    def build_prompts(self, clip, classnames):
        prompts = TemplatePrompts("a photo of a {}.", classnames, clip)
        prompts.pairs = nn.Parameter(torch.zeros(len(classnames), 2, len(classnames)))
        return prompts


@pytest.mark.parametrize("known", [True, False])
def test_a_tensor_with_values_for_pairs_of_classes_keeps_those_of_learned_pairs(
    known, build, monkeypatch
):
    """One dimension of it was adapted; the error about the other one blamed the settings."""
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Pairs", Pairs)
    monkeypatch.setattr(Pairs, "tensors_by_class", ("prompt_learner.pairs",) if known else ())
    base = build("Pairs", "base").method
    every = build("Pairs", "all").method
    assert every.checkpoints.class_dims() == {"prompt_learner.pairs": (0, 2)}
    learned = torch.randn(3, 2, 3)
    base.model.prompt_learner.pairs.data = learned
    names = [base.class_names[label] for label in (2, 0, 1)]  # other labels in the checkpoint
    metadata = {**base.checkpoints.metadata(), "class_names": names}
    content = {"state_dict": base.saved_module().state_dict(), "epoch": 1, "metadata": metadata}
    if not known:
        with one_line(
            "prompt_learner.pairs with values for each class", "test it on these classes"
        ):
            every.checkpoints.load_prompts(content, "a file")
        return
    every.checkpoints.load_prompts(content, "a file")
    expected = torch.zeros(6, 2, 6)
    here = torch.tensor([2, 0, 1])
    expected[here[:, None, None], torch.tensor([0, 1])[None, :, None], here] = learned
    assert torch.equal(every.model.prompt_learner.pairs, expected)


DAMAGES = {
    "has no": lambda tensor: None,
    "is not finite": lambda tensor: tensor * torch.nan,
    "has shape": lambda tensor: tensor[:-1],
    "expected is": lambda tensor: tensor[:, :-1],
    "(), expected": lambda tensor: torch.tensor(1.0),
    "is of torch.int32": lambda tensor: tensor.int(),
}


@pytest.mark.parametrize(
    ("method", "names"),
    [("DePT+CoOp", ["linear_probe_proj.weight"]), ("TipAdapter", ["weight", "values"])],
)
def test_damaged_values_of_learned_classes_are_refused_in_a_test_on_others_too(
    method, names, build
):
    one = ("OPTIM.MAX_EPOCH", 1)
    base = build(method, "base", options=one).method
    every = build(method, "all", options=one).method
    if method == "TipAdapter":
        base.begin(base.features_of(base.images.dataset.train_x))
    state = base.saved_module().state_dict()
    checkpoint = {"epoch": 1, "metadata": base.checkpoints.metadata()}
    every.checkpoints.load_prompts(checkpoint | {"state_dict": dict(state)}, "a file")
    for name, (words, damage) in product(names, DAMAGES.items()):
        damaged = {key: damage(value) if key == name else value for key, value in state.items()}
        content = {key: value for key, value in damaged.items() if value is not None}
        with pytest.raises(UsageError, match=re.escape(words)):
            every.checkpoints.load_prompts(checkpoint | {"state_dict": content}, "a file")


def wrapped(state):
    """As the published code saves a module in nn.DataParallel."""
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("named", [True, False])
def test_values_by_class_are_found_in_the_state_of_a_wrapped_module(named, build):
    base = build("DePT+CoOp", "base").method
    every = build("DePT+CoOp", "all").method
    state = base.saved_module().state_dict()
    # A published one does not say its classes
    metadata = {"metadata": base.checkpoints.metadata()} if named else {}
    every.checkpoints.load_prompts({"state_dict": wrapped(state), "epoch": 1, **metadata}, "a file")
    assert (
        torch.equal(every.model.linear_probe_proj.bias[:3], state["linear_probe_proj.bias"])
        == named
    )
    assert torch.equal(every.model.prompt_learner.ctx, state["prompt_learner.ctx"])


def test_a_checkpoint_names_its_method(build):
    trainer = build("CoOp").method
    content = {
        "state_dict": trainer.saved_module().state_dict(),
        "epoch": 1,
        "metadata": {"method": "KgCoOp"},
    }
    with one_line("a file is a checkpoint of KgCoOp, not of CoOp: test it with --trainer KgCoOp"):
        trainer.checkpoints.load_prompts(content, "a file")


@pytest.mark.parametrize(("method", "classes"), [("DePT+CoOp", 3), ("DePT+CoOp", 4), ("MMRL", 3)])
def test_a_checkpoint_without_class_names_was_not_learned_on_others(
    method, classes, finished, deep, tmp_path
):
    """DePT's head may have as many rows as a published checkpoint was given names, or others."""
    description, checkpoint, _ = read_model(finished(method), LoadOptions())
    published = {key: checkpoint[key] for key in ("state_dict", "epoch")}
    names, others = (
        [f"{kind} {number}" for number in range(classes)] for kind in ("class", "other")
    )
    given = replace(description, class_names=names)
    images = torch.randn(2, 3, 32, 32)
    opened = PromptedClassifier(given, published, "a file", LoadOptions(backbone=str(deep)))
    expected = PromptedClassifier(
        description, checkpoint, "a file", LoadOptions(backbone=str(deep))
    ).logits(images, others)
    torch.testing.assert_close(opened.logits(images, others), expected)
    opened.save(tmp_path)
    exported = load_classifier(tmp_path, backbone=str(deep))
    for asked in (names, others):
        torch.testing.assert_close(exported.logits(images, asked), opened.logits(images, asked))


@pytest.mark.parametrize(("tested", "known"), [(1, True), (2, False)])
def test_the_facts_of_the_tested_epoch_are_not_those_of_another(tested, known, finished, tmp_path):
    folder = shutil.copytree(finished("CoOp"), tmp_path / "run")
    results = of_json(folder / "results.json")
    to_json(folder / "results.json", results | {"tested_epoch": tested})
    classifier = load_classifier(folder, LoadOptions(epoch=1))
    facts = "epochs", "tested_epoch", "split", "n_test", "accuracy"
    assert [fact in classifier.description.training for fact in ("seed", *facts)] == [
        True,
        *[known] * 5,
    ]


def test_a_head_of_an_older_version_is_read_unless_it_read_the_features_of_a_run(
    finished, command, photos, tmp_path
):
    folder = shutil.copytree(finished("CLIPAdapter", "all"), tmp_path / "run")
    config = folder / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("  CLIPADAPTER:\n", "  CLIPADAPTER:\n    FEATURES_OF: ''\n"))
    command.works(predict, folder, photos)
    config.write_text(text.replace("  CLIPADAPTER:\n", "  CLIPADAPTER:\n    FEATURES_OF: x\n"))
    assert "FEATURES_OF was removed: embed the images" in command(predict, folder, photos).error


def test_an_epoch_of_an_unfinished_run_has_its_seed_and_shots(finished, command, photos, tmp_path):
    run = finished("CLIPAdapter", "all")
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "results.json").unlink()
    done = command.works(predict, folder, photos, "--csv", "--load-epoch", 1)
    assert done.printed == command(predict, run, photos, "--csv").printed
