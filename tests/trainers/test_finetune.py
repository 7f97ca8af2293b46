"""Fine-tuning of the whole image tower, beside plain PyTorch."""

import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from drawn import differing
from harness import backbone_of, images_of
from marks import case_of, golden, one_line
from torch.nn.functional import normalize

import trainers
from clip import load_backbone
from clip.random_weights import random_tensor
from inference import export
from trainers.finetune import wise_ft

NAMES = ["red", "green field", "blue lake"]


@pytest.fixture
def finetune(build, tiny):
    """`finetune(KEY=VALUE, ...)`: a trainer of FineTune on the three classes."""

    def finetune(final_model="last_step", **settings):
        pairs = {"CUTMIX": 0.0, "TOWER_RATE": 0.1} | settings
        options = ["OPTIM.NAME", "adamw", "OPTIM.LR", 0.01, "OPTIM.WEIGHT_DECAY", 0.01]
        options += ["OPTIM.MAX_EPOCH", 2, "TEST.FINAL_MODEL", final_model]
        own = [x for pair in pairs.items() for x in pair]
        return build("FineTune", "base", *own, backbone=tiny, options=options)

    return finetune


def texts_of(clip):
    sentences = [f"a centered satellite photo of {name}." for name in NAMES]
    return clip.encode_text(clip.tokenizer(sentences).long(), True)


@pytest.mark.parametrize("encoder", ["vision", "both"])
def test_steps_are_those_of_adamw_on_all_weights(encoder, finetune, tiny):
    trainer = finetune(ENCODER=encoder)
    method = trainer.method
    clip = load_backbone(str(tiny))
    images = images_of(3, 32)
    labels = torch.tensor([0, 2, 1])
    with torch.no_grad():
        rows = texts_of(clip)
    classifier = torch.nn.Parameter(rows.clone())
    log_scale = torch.nn.Parameter(torch.tensor(-math.log(0.07)))
    names = [name for name, _ in clip.named_parameters() if name != "logit_scale"]
    names = [name for name in names if encoder == "both" or name.startswith("visual.")]
    own = {name: clip.get_parameter(name).requires_grad_() for name in names}
    head = [log_scale, classifier] if encoder == "vision" else [log_scale]
    groups = [{"params": own.values(), "lr": 1e-3}, {"params": head, "lr": 1e-2}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    steps = 2 * trainer.method.training.batches
    for step in range(2):
        factor = 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * step / steps)) / 2
        for group, rate in zip(optimizer.param_groups, (1e-3, 1e-2), strict=True):
            group["lr"] = rate * factor
        features = clip.encode_image(images, True)
        weights = F.normalize(classifier, dim=1) if encoder == "vision" else texts_of(clip)
        loss = F.cross_entropy(log_scale.exp() * features @ weights.T, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found = method.training_step({"img": images, "label": labels})["loss"]
        assert found == pytest.approx(loss.item(), rel=1e-4)
    learner = method.model.prompt_learner
    for name, tensor in own.items():
        found = learner.get_parameter(name)
        if name.endswith("in_proj_bias"):  # keys have no gradient but that of rounding
            found, tensor = (torch.cat(each.chunk(3)[::2]) for each in (found, tensor))
        torch.testing.assert_close(found, tensor, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(learner.log_scale, log_scale)


def test_a_share_of_the_change_stays_at_the_end(finetune):
    trainer = finetune(WISE_FT=0.25)
    method = trainer.method
    learner = method.model.prompt_learner
    start = deepcopy(learner.state_dict())
    method.training_step({"img": images_of(3, 32), "label": torch.tensor([0, 2, 1])})
    tuned = deepcopy(learner.state_dict())
    method.training.epoch = 0
    method.after_epoch()
    assert differing(learner.state_dict(), tuned) == []
    method.training.epoch = 1  # the last
    method.after_epoch()
    found = learner.state_dict()
    for name in ("classifier", *learner.copies):
        expected = start[name] + 0.25 * (tuned[name] - start[name])
        torch.testing.assert_close(found[name], expected)
    torch.testing.assert_close(learner.log_scale, tuned["log_scale"])


def test_mixed_batches_have_the_shares_of_their_images(finetune):
    method = finetune(CUTMIX=1.0).method
    images = torch.stack([torch.full((3, 32, 32), float(number)) for number in range(3)])
    batch = {"img": images, "label": torch.arange(3)}
    torch.manual_seed(0)
    mixed, labels = method.parse_batch_train(batch)
    for image, target in zip(mixed, method.targets, strict=True):
        shares = torch.stack([(image == number).float().mean() for number in range(3)])
        torch.testing.assert_close(target, shares)
    assert labels.tolist() == [0, 1, 2] and not torch.equal(mixed, images)
    never = finetune(CUTMIX=0.0).method
    same, _ = never.parse_batch_train(batch)
    assert torch.equal(same, images) and never.targets is None
    assert trainers.methods()["FineTune"].reads_views is False


def test_only_the_last_epoch_is_a_mixture_with_clip(finetune):
    with one_line("TEST.FINAL_MODEL is best_val", "WISE_FT to 1"):
        finetune(final_model="best_val")


@pytest.mark.parametrize("encoder", ["vision", "both"])
def test_its_towers_are_a_plain_clip(encoder, finished, command, deep, tmp_path):
    settings = "TRAINER.FINETUNE.ENCODER", encoder, "TRAINER.FINETUNE.PREC", "fp32"
    run = finished("FineTune", "base", *settings)
    done = command.works(export, run, "--to", tmp_path / "out", "--weights")
    assert "largest difference of a logit" in done.printed


def pytest_generate_tests(metafunc):
    golden(metafunc, "figures", lambda figures: case_of(figures).get("trainer") == "WiSE-FT")


def test_golden_interpolation(figures, backbones):
    case = figures["case"]
    clip = load_backbone(str(backbone_of(case["arch"], backbones)))
    names = [name.replace("_", " ") for name in case["classnames"]]
    both = case["interpolated"] == "both towers"
    images = images_of(case["batch"], case["arch"]["image_resolution"])

    @torch.no_grad()
    def texts():
        found = [
            clip.encode_text(clip.tokenizer([text.format(name) for name in names]).long(), True)
            for text in case["templates"]
        ]
        return normalize(torch.stack(found).mean(dim=0), dim=1)

    start = {
        key: value.clone()
        for key, value in clip.state_dict().items()
        if key != "logit_scale" and (both or key.startswith("visual."))
    }
    scale = clip.logit_scale.exp()
    if not both:
        start |= {"weight": scale * texts(), "bias": torch.zeros(len(names))}
    factors = {"weight": "classification_head.weight", "bias": "classification_head.bias"}
    tuned = {}
    for key, value in start.items():
        factor = case["head_delta_scale" if key in factors else "delta_scale"]
        change = random_tensor(f"{factors.get(key, key)}.delta", tuple(value.shape))
        tuned[key] = value + factor * change
    for point in figures["points"]:
        state = {key: wise_ft(start[key], tuned[key], point["alpha"]) for key in start}
        clip.load_state_dict(state, strict=False)
        with torch.no_grad():
            features = clip.encode_image(images, True)
            weight = scale * texts() if both else state["weight"]
            logits = features @ weight.T + (0 if both else state["bias"])
        torch.testing.assert_close(logits, torch.tensor(point["logits"]), rtol=0, atol=1e-4)
