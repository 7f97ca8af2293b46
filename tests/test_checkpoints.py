"""Checkpoints cross over to the published code and back, hold prompts only, and run nothing that they name."""

import copy
import functools
import operator
import os
import random
import shutil
from collections import OrderedDict

import pytest
import torch
from dassl.engine import build_trainer
from dassl.utils import UsageError as DasslError
from drawn import arguments, differing, make_cfg, prompts_of
from torch import nn

from clip import load_backbone
from common.errors import UsageError

pytestmark = pytest.mark.slow

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.manual_seed(0))
SHORT = ["DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1]
FOLDER = "MultiModalPromptLearner"  # MPL's registered name in the published code


@pytest.fixture
def mpl(eurosat, tiny, tmp_path):
    """`mpl("base", "N_CTX", 1, ...)` -> an MPL trainer for those classes; the published settings but depth 3."""

    def build(classes, *settings, output="run", options=()):
        pairs = {"N_CTX": 1, "N_ADD_OP": 2, "N_RM_OP": 1, "PROMPT_DEPTH": 3, "PREC": "fp32"}
        pairs |= dict(zip(settings[::2], settings[1::2], strict=True))
        settings = [item for key, value in pairs.items() for item in (f"TRAINER.MPL.{key}", value)]
        options = [*settings, "DATASET.SUBSAMPLE_CLASSES", classes, *SHORT, *options]
        return build_trainer(make_cfg("MPL", eurosat, tiny, tmp_path / output, *options))

    return build


def logits(trainer):
    trainer.set_model_mode("eval")
    return trainer.model_inference(IMAGES.to(trainer.device))


def expected_of(trainer, prompts):
    """The logits of these prompts, put into the model with no checkpoint in between."""
    own = prompts_of(trainer)
    trainer.model.load_state_dict(prompts)
    result = logits(trainer)
    trainer.model.load_state_dict(own)
    assert not torch.allclose(result, logits(trainer), atol=1e-3)
    return result


def published_model(prompts, backbone, classes, prefix="module."):
    """The state dict of the published MPL's whole model: prompts, the classes' token buffers, and the frozen CLIP."""
    state = OrderedDict(prompts)
    state["prompt_learner.token_prefix"] = torch.randn(classes, 1, 64)
    state["prompt_learner.token_suffix"] = torch.randn(classes, 75, 64)
    for key, value in load_backbone(str(backbone)).state_dict().items():
        tower = "image_encoder." + key.removeprefix("visual.") if key.startswith("visual.") else f"text_encoder.{key}"
        state[key if key == "logit_scale" else tower] = value
    return OrderedDict((prefix + key, value) for key, value in state.items())


def published_training(parameters, epoch):
    """The other content of published checkpoints: the optimiser's state, and a scheduler with whole objects inside."""
    optimizer = torch.optim.SGD(parameters, lr=0.0035, momentum=0.9)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5.0)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    scheduler = {"successor": successor, "warmup_epoch": 1, "cons_lr": 1e-5, "base_lrs": [0.0035], "last_epoch": epoch}
    return {"epoch": epoch, "optimizer": optimizer.state_dict(), "scheduler": scheduler, "val_result": None}


def save_published(folder, state, epoch=5, **training):
    """Write `<folder>/MultiModalPromptLearner/model.pth.tar-<epoch>`, as the published code lays it out."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": epoch, **training}, folder / FOLDER / f"model.pth.tar-{epoch}")
    (folder / FOLDER / "checkpoint").write_text(f"model.pth.tar-{epoch}\n")


def randomised(trainer):
    """The trainer's prompts, moved off their initial values so that nothing passes by standing still."""
    generator = torch.manual_seed(3)
    for parameter in trainer.model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.device)
    return prompts_of(trainer)


# Published checkpoints here


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("epoch", [5, None])
def test_a_published_checkpoint_evaluates_on_other_classes(epoch, prefix, mpl, tiny, tmp_path, capsys):
    prompts = randomised(mpl("base"))
    state = published_model(prompts, tiny, 37, prefix)
    parameters = [nn.Parameter(value) for key, value in prompts.items()]
    save_published(tmp_path / "published", state, **published_training(parameters, 5))
    raw = (tmp_path / "published" / FOLDER / "model.pth.tar-5").read_bytes()
    assert b"CosineAnnealingLR" in raw and b"torch.optim.sgd\nSGD" in raw  # whole objects, as the published code's

    trainer = mpl("all")
    expected = expected_of(trainer, prompts)
    trainer.load_model(str(tmp_path / "published"), epoch=epoch)
    assert logits(trainer).shape == (3, 6) and torch.equal(logits(trainer), expected)
    assert trainer.loaded_epoch == 5 and "(epoch 5)" in capsys.readouterr().out


def test_half_precision_prompts_of_a_published_checkpoint_load_as_fp32(mpl, tiny, tmp_path):
    prompts = {key: value.half() for key, value in randomised(mpl("base")).items()}
    save_published(tmp_path / "published", published_model(prompts, tiny, 3))
    trainer = mpl("new")
    expected = expected_of(trainer, prompts)
    trainer.load_model(str(tmp_path / "published"), epoch=5)
    assert torch.equal(logits(trainer), expected)
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["PROMPT_DEPTH", 4], r"has no prompt_learner.compound_prompts_text.2"),
        (
            ["PROMPT_DEPTH", 2],
            r"prompts beyond these settings, such as prompt_learner.(compound_prompts_text|txt2img_proj.0).1",
        ),
        (["PROMPT_DEPTH", 1, "N_CTX", 1], r"prompts beyond these settings, such as prompt_learner.*"),
        (["N_ADD_OP", 1], r"prompts beyond these settings, such as prompt_learner.txt2img_proj.1.0"),
        (["N_ADD_OP", 3], r"has no prompt_learner.txt2img_proj.2.0"),
        (["N_ADD_OP", [2, 1]], r"prompts beyond these settings, such as prompt_learner.txt2img_proj.1.1"),
        (["N_CTX", 2], r"prompt_learner.ctx in .* has shape \(1, 64\), expected is \(2, 64\)"),
    ],
    ids=str,
)
def test_prompts_of_other_settings_are_refused_and_nothing_is_loaded(settings, reason, mpl, tiny, tmp_path):
    save_published(tmp_path / "published", published_model(mpl("base").model.state_dict(), tiny, 3))
    trainer = mpl("base", *settings)
    before = prompts_of(trainer)
    with pytest.raises(UsageError, match=f"{reason}.*: use the settings and the backbone it was trained with"):
        trainer.load_model(str(tmp_path / "published"), epoch=5)
    assert differing(prompts_of(trainer), before) == []


def test_class_specific_context_is_refused(mpl, tiny, tmp_path):
    state = published_model(mpl("base").model.state_dict(), tiny, 3)
    state["module.prompt_learner.ctx"] = torch.zeros(3, 1, 64)
    save_published(tmp_path / "published", state)
    with pytest.raises(UsageError, match=r"ctx in .* has shape \(3, 1, 64\)"):
        mpl("all").load_model(str(tmp_path / "published"), epoch=5)


def test_published_weights_can_be_what_training_starts_from(mpl, tiny, tmp_path):
    prompts = randomised(mpl("base"))
    save_published(tmp_path / "published", published_model(prompts, tiny, 3))
    file = tmp_path / "published" / FOLDER / "model.pth.tar-5"
    trainer = mpl("new", options=["MODEL.INIT_WEIGHTS", str(file)])
    assert differing(prompts_of(trainer), prompts) == []


# Ours


@pytest.fixture(scope="module")
def trained(eurosat, tiny, tmp_path_factory):
    """A trainer after one epoch, and the folder that it left."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["TRAINER.MPL.N_CTX", 1, "TRAINER.MPL.PROMPT_DEPTH", 3, "TRAINER.MPL.PREC", "fp32"]
    trainer = build_trainer(make_cfg("MPL", eurosat, tiny, folder, *options, *SHORT))
    trainer.train()
    return trainer, folder


@pytest.fixture
def checkpoints(trained, tmp_path):
    """A copy of that folder's checkpoints, as tests change them."""
    return shutil.copytree(trained[1] / FOLDER, tmp_path / "a run" / FOLDER)


def test_ours_holds_the_learned_prompts_and_nothing_else(trained):
    trainer, folder = trained
    file = folder / FOLDER / "model.pth.tar-1"
    checkpoint = torch.load(file, weights_only=True)  # so it names nothing but tensors and plain values
    learned = dict(trainer.model.named_parameters())
    assert list(checkpoint["state_dict"]) == list(learned)
    assert {"state_dict", "epoch", "optimizer", "scheduler", "val_result"} <= checkpoint.keys()
    prompts_and_momentum = 2 * sum(parameter.numel() * 4 for parameter in learned.values())
    assert prompts_and_momentum < file.stat().st_size < 2 * prompts_and_momentum


class PublishedPrompts(nn.Module):
    """The published MPL's prompt learner by its names, with buffers of its own classes."""

    def __init__(self, depth=3, adds=2, n_ctx=1, width=64):
        super().__init__()
        self.ctx = nn.Parameter(torch.zeros(n_ctx, width))
        self.proj = nn.Linear(width, width)
        self.compound_prompts_text = nn.ParameterList(torch.zeros(n_ctx, width) for _ in range(depth - 1))
        self.txt2img_proj = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1)) for _ in range(adds)
        )
        self.register_buffer("token_prefix", torch.zeros(9, 1, width))
        self.register_buffer("token_suffix", torch.zeros(9, 75, width))


def test_ours_loads_in_the_published_module(trained):
    trainer, folder = trained
    theirs = nn.Module()
    theirs.prompt_learner, theirs.image_encoder = PublishedPrompts(), nn.Linear(2, 2)
    state = torch.load(folder / FOLDER / "model.pth.tar-1", weights_only=True)["state_dict"]
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert unexpected == []
    assert {key for key in missing if "token_" not in key} == {"image_encoder.weight", "image_encoder.bias"}
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(theirs.get_parameter(name), parameter.cpu())


def test_the_best_checkpoint_is_loaded_else_the_newest(checkpoints, mpl):
    trainer, folder = mpl("all"), str(checkpoints.parent)
    checkpoint = torch.load(checkpoints / "model.pth.tar-1", weights_only=True)
    for name, epoch in (("model.pth.tar-2", 2), ("model.pth.tar-10", 10)):
        torch.save({**checkpoint, "epoch": epoch}, checkpoints / name)
    (checkpoints / "checkpoint").write_text("model.pth.tar-10\n")
    trainer.load_model(folder)
    assert trainer.loaded_epoch == 10
    trainer.load_model(folder, epoch=2)
    assert trainer.loaded_epoch == 2

    torch.save({**checkpoint, "epoch": 7}, checkpoints / "model-best.pth.tar")
    trainer.load_model(folder)
    assert trainer.loaded_epoch == 7
    with pytest.raises(UsageError, match=r"no MPL .*tar-3: check --load-epoch \(epochs there: 1, 2, 10\)"):
        trainer.load_model(folder, epoch=3)


@pytest.mark.parametrize("name", [None, b"\xff\xfe\x00", b"../other/model.pth.tar-1", b"model.pth.tar-7"])
def test_newest_checkpoint_is_found_without_its_text_file(name, checkpoints, mpl):
    """Published checkpoints are often passed on as the one file in its folder; a damaged text file is like none."""
    (checkpoints / "checkpoint").unlink()
    if name:
        (checkpoints / "checkpoint").write_bytes(name)
    checkpoint = torch.load(checkpoints / "model.pth.tar-1", weights_only=True)
    for epoch in (9, 10):
        torch.save({**checkpoint, "epoch": epoch}, checkpoints / f"model.pth.tar-{epoch}")
    trainer = mpl("all")
    trainer.load_model(str(checkpoints.parent))
    assert trainer.loaded_epoch == 10


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "integers"])
def test_prompts_with_nan_or_infinity_are_refused_by_name(value, checkpoints, mpl):
    file = checkpoints / "model.pth.tar-1"
    checkpoint = torch.load(file, weights_only=True)
    prompt = checkpoint["state_dict"]["prompt_learner.ctx"]
    if value == "integers":
        checkpoint["state_dict"]["prompt_learner.ctx"] = prompt.long()
    else:
        prompt[0, 3] = value
    torch.save(checkpoint, file)
    trainer = mpl("all")
    before = prompts_of(trainer)
    refusal = r"prompt_learner.ctx in .*model.pth.tar-1 is not finite: use the checkpoint of"
    with pytest.raises(UsageError, match=refusal):
        trainer.load_model(str(checkpoints.parent))
    assert differing(prompts_of(trainer), before) == []


def test_mutated_checkpoints_are_refused_in_one_line_or_sound(checkpoints, mpl):
    """The facts beside the tensors of a checkpoint change at random places; an evaluation that accepts it runs."""
    file = checkpoints / "model.pth.tar-1"
    whole = torch.load(file, weights_only=True)
    trainer, chance, accepted = mpl("all"), random.Random(13), 0
    parts = [("metadata", key) for key in whole["metadata"]] + [("metadata", "settings", "N_CTX")]
    parts += [("state_dict", "prompt_learner.ctx"), ("state_dict", "new"), ("state_dict",), ("epoch",), ("metadata",)]
    values = [None, True, -1, 10**400, 0.5, float("nan"), "x\n" * 3000, b"\xff", [], {}, {"x": 1}, [[1]], (1, "a")]
    values += [torch.ones(2), torch.ones(1, 64, dtype=torch.complex64), torch.ones(1).expand(1, 64), torch.zeros(0)]
    cases = [(part, value) for part in parts for value in values]
    for (*path, key), value in chance.sample(cases, 200):
        checkpoint = copy.deepcopy(whole)
        part = functools.reduce(operator.getitem, path, checkpoint)
        part[key] = value
        torch.save(checkpoint, file)
        try:
            trainer.load_model(str(checkpoints.parent))
        except (UsageError, DasslError):
            continue
        accepted += 1
        assert logits(trainer).isfinite().all()
    assert 0 < accepted < 100


# Hostile ones


class Call:
    """Pickles as a call of `function`, which a plain torch.load would make."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


class Local:
    """A class that the loader does not know."""


HOSTILE = {
    "posix.system": Call(os.system, "touch executed"),
    "eval": Call(eval, "__import__('os').mkdir('executed')"),
    "test_checkpoints.Local": Local(),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["scheduler", "state_dict"])
def test_hostile_pickle_is_refused_and_not_run(place, name, mpl, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = published_model(mpl("base").model.state_dict(), tiny, 3)
    contents = {"scheduler": {"successor": HOSTILE[name]}} if place == "scheduler" else {}
    save_published(tmp_path, state if contents else state | {"module.x": HOSTILE[name]}, **contents)
    trainer = mpl("base")
    with pytest.raises(DasslError, match=rf"contains (builtins\.)?{name}, which is neither .* not loaded") as refusal:
        trainer.load_model(str(tmp_path), epoch=5)
    assert "\n" not in str(refusal.value)
    assert not os.path.exists("executed")
    torch.load(tmp_path / FOLDER / "model.pth.tar-5", weights_only=False)
    assert os.path.exists("executed") == (name != "test_checkpoints.Local")  # had it been let


def test_train_py_refuses_it_in_one_line(launch, eurosat, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_published(tmp_path / "theirs", {"prompt_learner.ctx": Call(os.system, "touch executed")})
    options = ["--eval-only", "--model-dir", tmp_path / "theirs", "--load-epoch", 5]
    ended = launch(*arguments(eurosat, tiny, tmp_path / "out", options=options))
    assert ended.status == 2
    assert len(ended.errors) == 1 and ended.errors[0].startswith("error: ") and "posix.system" in ended.errors[0]
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out/results.json").exists()
