"""FEATURES_OF: heads on the features of a trained run, and what other classes are given."""

import shutil

import pytest
import torch
from dassl.engine import TRAINER_REGISTRY
from feature_runs import images_of, maker
from marks import one_line

import trainers
from clip import TOWERS
from common.errors import UsageError
from inference.classifier import PromptedClassifier
from inference.description import describe
from inference.options import LoadOptions

pytestmark = pytest.mark.slow


@pytest.fixture
def make(eurosat, tiny, tmp_path):
    return maker(eurosat, tiny, tmp_path)


@pytest.fixture
def learned(make, tmp_path):
    """The folder of a run of CoOp on base classes."""
    make("CoOp", "DATASET.SUBSAMPLE_CLASSES", "base", output="coop").train()
    return tmp_path / "coop"


def test_a_head_stands_on_the_features_of_a_run(make, learned, tmp_path):
    def both(classes):
        """A head and the run itself, on these classes."""
        options = ["DATASET.SUBSAMPLE_CLASSES", classes, "MODEL.BACKBONE.TOWERS", "plain"]
        coop = make("CoOp", *options, output=f"coop {classes}")
        coop.load_model(str(learned))
        coop.set_model_mode("eval")
        return make(
            "TipAdapter", *options, "TRAINER.TIPADAPTER.FEATURES_OF", str(learned), output=classes
        ), coop

    head, coop = both("base")
    assert head.model.base.towers is TOWERS["plain"]
    images = images_of(head)
    output = coop.model.output(images)
    assert torch.allclose(head.model.class_texts, output.text, atol=1e-6)
    assert not head.model.base.training and not any(
        each.requires_grad for each in head.model.base.parameters()
    )
    head.train()
    head.method.head.alpha.zero_()
    assert torch.allclose(head.model_inference(images), output.logits, atol=1e-3)
    head, coop = both("new")
    head.load_model(str(tmp_path / "base"))
    assert torch.allclose(
        *(method.model_inference(images_of(head)) for method in (head, coop)), atol=1e-3
    )
    assert {tensor.device.type for tensor in head.model.to("meta").base.state_dict().values()} == {
        "meta"
    }


def test_a_head_is_not_used_on_the_features_of_another_run(make, learned, tmp_path):
    """The folder of its run may have another one by then."""
    options = "DATASET.SUBSAMPLE_CLASSES", "base", "TRAINER.CLIPADAPTER.FEATURES_OF", str(learned)
    make("CLIPAdapter", *options, "TRAIN.CHECKPOINT_FREQ", 1, output="head").train()
    shutil.rmtree(learned)
    make("CoOp", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.LR", 0.5, output="coop").train()
    with pytest.raises(
        UsageError, match="on the features of another run: give .* TRAINER.CLIPADAPTER.FEATURES_OF"
    ):
        make("CLIPAdapter", *options, output="test").load_model(str(tmp_path / "head"))
    (tmp_path / "head/clip_adapter/model.pth.tar-2").unlink()
    (tmp_path / "head/clip_adapter/checkpoint").write_text("model.pth.tar-1\n")
    with one_line("the run to resume has a head on the features of another run"):
        make("CLIPAdapter", *options, output="head").train()


def test_predictions_read_the_features_run_and_an_exported_folder_would_lack_it(
    make, learned, tmp_path
):
    (tmp_path / "4 shots").symlink_to(learned)
    options = [
        "DATASET.SUBSAMPLE_CLASSES",
        "base",
        "TRAINER.GDA.FEATURES_OF",
        f"{tmp_path}/{{shots}} shots",
    ]
    trainer = make("GDA", *options)
    trainer.train()
    checkpoint = torch.load(tmp_path / "run/gda/model.pth.tar-1", weights_only=False)
    backbone = trainer.cfg.MODEL.BACKBONE.NAME
    classifier = PromptedClassifier(
        describe(trainer.cfg, checkpoint, {"shots": 4}),
        checkpoint,
        "run",
        LoadOptions(backbone=backbone),
    )
    images = images_of(trainer)
    assert torch.allclose(
        classifier.logits(images), trainer.model_inference(images).cpu(), atol=1e-4
    )
    with one_line("needs the features of the run"):
        classifier.save(tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_residuals_of_a_start_are_added_to_the_texts_of_the_run(make, tmp_path):
    make("TaskRes", output="start").train()
    (file,) = (tmp_path / "start").glob("*/model.pth.tar-2")
    head = make(
        "TaskRes", "MODEL.INIT_WEIGHTS", str(file), "DATASET.TEMPLATE", "a bad photo of a {}."
    ).method.head
    own = make("TaskRes", "DATASET.TEMPLATE", "a bad photo of a {}.", output="own").method.head
    start = torch.load(file, weights_only=True)["state_dict"]
    assert torch.equal(head.base_text_features, own.base_text_features)
    assert not torch.equal(head.base_text_features.cpu(), start["base_text_features"])
    assert torch.equal(head.text_feature_residuals.cpu(), start["text_feature_residuals"])


def test_votes_for_learned_classes_are_kept_in_a_test_on_all(make, tmp_path, capsys):
    base = make("TipAdapter", "DATASET.SUBSAMPLE_CLASSES", "base", output="base")
    base.train()
    every = make("TipAdapter", output="all")
    every.load_model(str(tmp_path / "base"))
    assert "The prompts were learned on 3 of these 6 classes" in capsys.readouterr().out
    images = images_of(every)
    head = every.method.head
    votes = every.model_inference(images)
    known = [every.method.class_names.index(name) for name in base.method.class_names]
    others = [label for label in range(6) if label not in known]
    assert torch.allclose(votes[:, known], base.model_inference(images), atol=1e-4)
    assert head.values[:, others].abs().sum() == 0 < head.values[:, known].abs().sum()


@pytest.mark.parametrize("method", ["DePT+CoOp", "PatchVoting"])
def test_a_run_with_logits_of_its_own_is_no_source_of_features(method, make, tmp_path, monkeypatch):
    coop = trainers.methods()["CoOp"]
    model = type("Model", (coop.Model,), {"logits": lambda self, image, text: image @ text.T})
    voting = type("PatchVoting", (coop,), {"Model": model, "section": coop.section})
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "PatchVoting", voting)
    make(method, output="source").train()
    with one_line("has its own `output` or `logits`"):
        make("GDA", "TRAINER.GDA.FEATURES_OF", str(tmp_path / "source"))
