"""Checkpoints cross over to the published code and back, hold prompts only, and run nothing that
they name.
"""

import shutil

import pytest
import torch
from drawn import differing, prompts_of
from published_files import FOLDER, published_model, save_published

from common.errors import UsageError

pytestmark = pytest.mark.slow

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.manual_seed(0))


@pytest.fixture
def mpl(build, tiny):
    """`mpl("base", "N_CTX", 1, ...)` -> an MPL trainer for those classes; the published settings
    but depth 3.
    """

    def mpl(classes, *settings, **how):
        return build("MPL", classes, "N_CTX", 1, "PROMPT_DEPTH", 3, *settings, backbone=tiny, **how)

    return mpl


def logits(trainer):
    trainer.set_model_mode("eval")
    return trainer.model_inference(IMAGES)


# Published checkpoints here


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["PROMPT_DEPTH", 4], r"has no prompt_learner.compound_prompts_text.2"),
        (["PROMPT_DEPTH", 1], r"has prompts beyond these settings, such as prompt_learner.*"),
        (
            ["N_ADD_OP", [2, 1]],
            r"has prompts beyond these settings, such as prompt_learner.txt2img_proj.1.1",
        ),
        (["N_CTX", 2], r"prompt_learner.ctx in .* has shape \(1, 64\), expected is \(2, 64\)"),
    ],
    ids=str,
)
def test_prompts_of_other_settings_are_refused_and_nothing_is_loaded(
    settings, reason, mpl, tiny, tmp_path
):
    save_published(tmp_path / "published", published_model(mpl("base").model.state_dict(), tiny, 3))
    trainer = mpl("base", *settings)
    before = prompts_of(trainer)
    with pytest.raises(
        UsageError, match=f"{reason}.*: use the settings and the backbone it was trained with"
    ):
        trainer.load_model(str(tmp_path / "published"), epoch=5)
    assert differing(prompts_of(trainer), before) == []


# Ours


@pytest.fixture
def checkpoints(finished, tiny, tmp_path):
    """The checkpoints of a run of one epoch, as tests change them."""
    settings = "TRAINER.MPL.PROMPT_DEPTH", 3, "TRAINER.MPL.PREC", "fp32"
    return shutil.copytree(
        finished("MPL", "all", *settings, backbone=tiny) / FOLDER, tmp_path / "a run" / FOLDER
    )


def test_ours_holds_the_learned_prompts_and_nothing_else(checkpoints, mpl):
    file = checkpoints / "model.pth.tar-1"
    # So it names nothing but tensors and plain values
    checkpoint = torch.load(file, weights_only=True)
    learned = dict(mpl("all").model.named_parameters())
    assert list(checkpoint["state_dict"]) == list(learned)
    assert {"state_dict", "epoch", "optimizer", "scheduler", "val_result"} <= checkpoint.keys()
    prompts_and_momentum = 2 * sum(parameter.numel() * 4 for parameter in learned.values())
    assert prompts_and_momentum < file.stat().st_size < 2 * prompts_and_momentum


@pytest.mark.parametrize(
    ("text", "newest"),
    [
        (b"model.pth.tar-2\n", 2),
        *(
            (text, 10)
            for text in (None, b"\xff\xfe\x00", b"../x/model.pth.tar-1", b"model.pth.tar-7")
        ),
    ],
)
def test_the_best_checkpoint_is_loaded_else_the_newest(text, newest, checkpoints, mpl):
    """Published checkpoints are often passed on without the text file `checkpoint`; a damaged one
    is like none.
    """
    trainer = mpl("all")
    folder = str(checkpoints.parent)
    checkpoint = torch.load(checkpoints / "model.pth.tar-1", weights_only=True)
    for epoch in (2, 10):
        torch.save({**checkpoint, "epoch": epoch}, checkpoints / f"model.pth.tar-{epoch}")
    (checkpoints / "checkpoint").unlink()
    if text:
        (checkpoints / "checkpoint").write_bytes(text)
    for epoch, loaded in ((None, newest), (10, 10)):
        trainer.load_model(folder, epoch=epoch)
        assert trainer.method.loaded_epoch == loaded
    torch.save({**checkpoint, "epoch": 7}, checkpoints / "model-best.pth.tar")
    trainer.load_model(folder)
    assert trainer.method.loaded_epoch == 7
    with pytest.raises(
        UsageError, match=r"no MPL .*tar-3: check --load-epoch \(epochs there: 1, 2, 10"
    ):
        trainer.load_model(folder, epoch=3)


@pytest.mark.parametrize(
    ("removed", "said"),
    [(0, ["The prompts were learned with other settings: N_RM_OP 1, here 0"]), (1, [])],
)
def test_settings_other_than_those_of_the_training_are_named(
    removed, said, checkpoints, mpl, capsys
):
    """They fit its tensors, too, and give other logits."""
    trainer = mpl("all", "N_RM_OP", removed)
    capsys.readouterr()
    trainer.load_model(str(checkpoints.parent))
    assert [
        line for line in capsys.readouterr().out.splitlines() if "other settings" in line
    ] == said
