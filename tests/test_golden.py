"""Every trainer computes what the published implementation of its method computes (logits,
gradients, training steps).

`--golden DIR` runs other figures of the same form. Tolerances are those the figures were published
with: the published code itself differs by up to 2e-5 between instruction sets and thread counts.
"""

import numpy as np
import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from drawn import make_cfg, write_eurosat
from marks import case_of, golden, thorough_but

import trainers.promptsrc
from clip import TOWERS
from clip.random_weights import random_tensor
from trainers.base.build import assemble_model
from trainers.base.method import Classes

BEFORE = 2e-4
LOSSES = 1e-3
AFTER = 1e-3
QUICK = "mpl_add2_rm1", "zeroshot"  # golden files of `make check`
COPIES = {"TwoStage", "CLIPFit", "CLIPSVD"}  # test_golden_copies.py
RECENT = {"DPC", "MMApp", "NLPrompt", "HiCroPL", "SkipTuning"}  # test_golden_recent.py
NAMES = "ce", "text", "image", "kl"  # of the parts of a loss in older files


def pytest_generate_tests(metafunc):
    def of_prompts(figures):
        """Not of a test-time method, of one on features or of one with copies of weights: they have
        their own tests.
        """
        case = case_of(figures)
        return (
            case.get("trainer", "TwoStage") not in COPIES | RECENT
            and not {"kind", "input"} & case.keys()
        )

    golden(metafunc, "method", of_prompts, QUICK)
    golden(metafunc, "zeroshot", lambda figures: "template" in figures, QUICK)
    golden(
        metafunc,
        "averages",
        lambda figures: isinstance(figures, list) and "weights" in figures[0],
        QUICK,
    )


@pytest.fixture(params=thorough_but(("fast",), ("fast", "by row", "plain")))
def towers(request, monkeypatch):
    """The form of the towers: all must give the published numbers."""
    if request.param != "by row":
        return request.param
    monkeypatch.setattr("clip.layout.AT_ONCE", 0)
    return "fast"


def build(
    trainer,
    towers,
    settings,
    arch,
    classnames,
    optimizer,
    backbones,
    tmp_path,
    dataset="EuroSAT",
    by_recipe=True,
    sentences="",
    **data,
):
    """A trainer on a small CLIP of the recipe's weights, through the ordinary configuration and
    data path.

    `by_recipe`: what it learns starts there, too. `data` are further arguments of `write_eurosat`.
    """
    size = arch["image_resolution"]
    write_eurosat(tmp_path, classnames, **data)
    backbone = backbone_of(arch, backbones)
    overrides = {
        "INPUT.SIZE": (size, size),
        "OPTIM.LR_SCHEDULER": "single_step",
        "OPTIM.WARMUP_EPOCH": -1,
    }
    overrides |= {"MODEL.BACKBONE.TOWERS": towers, "DATASET.NAME": dataset}
    if sentences:
        overrides["DATASET.SENTENCES"] = str(sentences)
    optimizer = {
        {"eps": "adam_eps"}.get(key, key): value
        for key, value in optimizer.items()
        if key != "betas"
    }
    overrides |= {f"OPTIM.{key.upper()}": value for key, value in optimizer.items()}
    section = trainers.methods()[trainer].section()
    overrides |= {
        f"TRAINER.{section}.{key}": value for key, value in ({"PREC": "fp32"} | settings).items()
    }
    cfg = make_cfg(
        trainer,
        tmp_path,
        backbone,
        tmp_path / "out",
        *(x for pair in overrides.items() for x in pair),
    )
    # So that the numbers of a CLIP's constructor are drawn for the first case only
    torch.manual_seed(1)
    trainer = build_trainer(cfg)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters() if by_recipe else ():
            parameter.copy_(random_tensor(name, tuple(parameter.shape)))
    trainer.method.schedule_steps = False
    # The learning rate stays
    trainer.batch_idx = 0
    trainer.num_batches = 10**9
    return trainer


def backbone_of(arch, backbones):
    sizes = arch["image_resolution"], arch["patch_size"], arch["vision_layers"], arch["text_layers"]
    return backbones(*sizes, *arch.get("widths", ()))


def images_of(batch, size, seed=7):
    return torch.from_numpy(
        np.random.default_rng(seed).standard_normal((batch, 3, size, size), dtype=np.float32)
    )


def for_classes(trainer, names):
    """The method for other classes, with the tensors of a checkpoint of the trainer."""
    names = [name.replace("_", " ") for name in names]
    other = type(trainer.method)(
        trainer.cfg,
        Classes(names, trainer.method.dataset_template, trainer.method.sentences),
        trainer.device,
    )
    assemble_model(other, trainer.cfg.MODEL.BACKBONE.TOWERS, trainer.model.frozen)
    state = {
        key: value.clone() for key, value in trainer.method.saved_module().state_dict().items()
    }
    other.checkpoints.load_prompts(
        {"state_dict": state, "epoch": 1, "metadata": trainer.checkpoint_metadata()}, "a file"
    )
    other.model.eval()
    return other


def check_logits(trainer, images, figures, when, tolerance):
    """Those for other classes; and those for learned ones, where a method reads these in another
    way.
    """
    if f"logits_new_{when}" in figures:
        other = for_classes(trainer, figures["case"]["new_classnames"])
        close(other.model_inference(images), figures[f"logits_new_{when}"], tolerance)
    for name, learned in (
        (f"logits_{when}", False),
        (f"logits_fusion_{when}", True),
        (f"logits_train_{when}", True),
    ):
        if name in figures:
            trainer.model.classes_learned = learned
            trainer.set_model_mode("train" if "train" in name else "eval")
            close(trainer.model_inference(images), figures[name], tolerance)
    trainer.set_model_mode("train")


def close(got, expected, tolerance):
    assert torch.as_tensor(got).tolist() == pytest.approx(np.array(expected), abs=tolerance, rel=0)


def shapes_of(tensors):
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def norms_of(tensors):
    return {name: tensor.detach().norm().item() for name, tensor in tensors.items()}


def gradients_of(learned):
    return norms_of({name: parameter.grad for name, parameter in learned.items()})


def changes_of(learned, start):
    return norms_of({name: learned[name].detach() - start[name] for name in learned})


def test_method(method, towers, backbones, stand_in, tmp_path, monkeypatch):
    stand_in(method["case"].get("dataset", "EuroSAT"))
    check_method(method, towers, backbones, tmp_path, monkeypatch)


def check_method(figures, towers, backbones, tmp_path, monkeypatch):
    case = figures["case"]
    method = f"{case['trainer']}+{case['base']}" if "base" in case else case["trainer"]
    assert method in TRAINER_REGISTRY.registered_names()
    values = case["cfg"] | case.get("base_cfg", {})
    settings = method, towers, values, case["arch"], case["classnames"], figures["optimizer"]
    trainer = build(*settings, backbones, tmp_path, case.get("dataset", "EuroSAT"))
    learned = dict(trainer.model.named_parameters())
    idle = figures.get("in_optimizer_but_without_gradient", {})
    assert shapes_of(learned) == figures["trainable"] | idle
    learned = {name: learned[name] for name in figures["trainable"]}

    images = images_of(case["batch"], case["arch"]["image_resolution"]).to(trainer.device)
    batch = {"img": images, "label": torch.tensor(figures["labels"]).to(trainer.device)}
    if "second_view_seed" in case:
        batch["img"] = [
            images,
            images_of(case["batch"], images.shape[-1], case["second_view_seed"]),
        ]
        drawn = iter(case["sentence_of_step"])
        monkeypatch.setattr("random.randint", lambda low, high: next(drawn))
        trainer.method.sentences = case["sentences"]
    check_logits(trainer, images, figures, "before", BEFORE)
    if "input_grads" in figures:
        check_input_gradients(trainer, batch, figures["input_grads"])
    start = {name: parameter.detach().clone() for name, parameter in learned.items()}
    steps = []
    for step in range(len(figures["losses"])):
        steps.append(
            {name: float(value) for name, value in trainer.forward_backward(batch).items()}
        )
        if step == 0:
            assert gradients_of(learned) == pytest.approx(figures["grad_norms"], rel=1e-3, abs=1e-4)
    close([logged["loss"] for logged in steps], figures["losses"], LOSSES)
    named = [
        dict(zip(NAMES, values, strict=True))
        for values in figures.get("loss_parts_ce_text_image_kl", [])
    ]
    parts = figures.get("loss_parts", named)
    for logged, expected in zip(steps, parts, strict=bool(parts)):
        got = [
            logged[key if (key := f"loss_{part}") in logged else f"loss_reg_{part}"]
            for part in expected
        ]
        close(got, list(expected.values()), LOSSES)
    if "projected" in figures:
        assert [bool(logged["projected"]) for logged in steps] == figures["projected"]
    assert norms_of(learned) == pytest.approx(figures["param_norms_after"], rel=1e-4)
    if "param_change_norms" in figures:
        expected = pytest.approx(figures["param_change_norms"], rel=1e-3, abs=1e-4)
        assert changes_of(learned, start) == expected
    check_logits(trainer, images, figures, "after", AFTER)


def check_input_gradients(trainer, batch, expected):
    """Of the loss, with respect to the images and to the token embeddings."""
    images = batch["img"].clone().requires_grad_()
    tokens = []

    def kept(module, inputs, output):
        tokens.append(output.requires_grad_())
        return output

    hook = trainer.model.frozen.token_embedding.register_forward_hook(kept)
    embedding = trainer.model.clip.token_embedding
    if embedding is not trainer.model.frozen.token_embedding:  # a private copy
        hook = getattr(embedding, "module", embedding).register_forward_hook(kept)
    loss = trainer.method.loss(trainer.model.output(images), batch["label"])[0]
    hook.remove()
    of_image, *of_tokens = torch.autograd.grad(loss, [images, *tokens], allow_unused=True)
    assert of_image.norm().item() == pytest.approx(expected["image"], rel=1e-3)
    close(of_image.flatten()[:8], expected["image_first8"], 1e-4)
    # They read all tokens of all classes
    if trainer.model.towers is TOWERS["plain"] and len(of_tokens) == 1:
        assert of_tokens[0].norm().item() == pytest.approx(expected["token_embedding"], rel=1e-3)
        close(
            of_tokens[0][0, 1, :8],
            expected["token_embedding_first8"],
            1e-3 * expected["token_embedding"],
        )


def test_zeroshot(zeroshot, towers, backbones, tmp_path, monkeypatch):
    arch = {
        "image_resolution": 64,
        "patch_size": 16,
        "vision_layers": 4,
        "text_layers": 4,
    } | zeroshot.get("arch", {})
    monkeypatch.setattr(DATASET_REGISTRY.get("EuroSAT"), "template", zeroshot["template"])
    figures = zeroshot
    trainer = build(
        "ZeroshotCLIP", towers, {}, arch, figures["classnames"], {}, backbones, tmp_path
    )
    images = images_of(len(figures["logits"]), arch["image_resolution"]).to(trainer.device)
    trainer.set_model_mode("eval")
    close(trainer.model_inference(images), figures["logits"], BEFORE)
    with torch.no_grad():
        image = trainer.model.image_features(images)
        text = trainer.model.text_features(image)
    close(image[:, :8], figures["image_features_first8"], 1e-5)
    close(text[:, :8], figures["text_features_first8"], 1e-5)


def test_gaussian_average_of_prompts(averages):
    for figures in averages:
        weights = trainers.promptsrc.gpa_weights(figures["epochs"], figures["mean"], figures["std"])
        assert weights == pytest.approx(figures["weights"], rel=1e-6, abs=1e-45)
