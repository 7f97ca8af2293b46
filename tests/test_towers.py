"""The two towers against open_clip's own, and what a prompt schedule does to them."""

import pytest
import torch
from drawn import differing, prompts_of, small_clip
from schedules import LAYERS

from clip import TOWERS, ClipError, TextPrompts, prompt_lengths, tokenize
from clip.plain import encode_image, encode_text
from trainers.mpl import MPLPrompts

# ---------------------------------------------------------------- no prompts: open_clip's own
# towers


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({}, {}),
        (
            {"image_size": 48, "patch_size": 8, "width": 128, "layers": LAYERS},
            {"width": 128, "heads": 2, "layers": 1},
        ),
        ({"image_size": 28, "patch_size": 14, "layers": 1}, {"context_length": 24, "layers": 4}),
        ({"image_size": (32, 64)}, {"proj_bias": True}),
    ],
)
def test_without_prompts_both_towers_equal_open_clips(vision, text, quick_gelu):
    model = small_clip(vision, text, quick_gelu)
    images = torch.randn(2, 3, *model.visual.image_size, generator=torch.manual_seed(0))
    ids = tokenize(["a photo of a river.", "x"], model.context_length)
    torch.testing.assert_close(encode_image(model, images).feature, model.encode_image(images))
    torch.testing.assert_close(encode_text(model, TextPrompts(ids)), model.encode_text(ids))


# ---------------------------------------------------------------- the number of prompts in each
# layer


@pytest.mark.parametrize(
    ("n", "a", "r", "depth"), [(1, 2, 1, 9), (2, 2, 1, 5), (2, 1, 2, 4), (4, 3, 4, 2), (3, 0, 1, 4)]
)
def test_number_of_prompts_grows_linearly_up_to_the_depth(n, a, r, depth):
    lengths = prompt_lengths([n, *[a * n] * (depth - 1)], [0, *[r] * (depth - 1)], 12)
    assert lengths == [n + min(layer, depth - 1) * (a * n - r) for layer in range(12)]


@pytest.mark.parametrize("form", TOWERS)
def test_add_and_remove_can_differ_by_layer(form):
    model = small_clip({"layers": 6}, {"layers": 6})
    lengths = []
    prompts = MPLPrompts(
        model, ["river", "annual crop"], 2, "a photo of a", [0, 3, 1, 0], [1, 0, 7, 2]
    )
    for block in model.visual.transformer.resblocks:
        # CLS, patches
        block.ln_1.register_forward_pre_hook(lambda ln_1, x: lengths.append(x[0].shape[1] - 5))
    TOWERS[form].encode_image(model, torch.zeros(1, 3, 32, 32), prompts.vision(), read=["patches"])
    assert lengths == prompt_lengths([2, 0, 6, 2, 0], [0, 1, 0, 7, 2], 6) == [2, 1, 7, 2, 0, 0]
    # A coupling for each layer with additions, and none for the others.
    names = {name.rsplit(".", 1)[0] for name, _ in prompts.txt2img_proj.named_parameters()}
    assert names == {"0.1", "0.2", "1.1", "2.1"}


@pytest.mark.parametrize(
    ("adds", "removes", "message"),
    [
        ([1, 2], [0, 2], "cannot remove 2 prompts before layer 1, which has 1"),
        ([1, 0, 0], [0, 1, 1], "cannot remove 1 prompts before layer 2, which has 0"),
        ([2], [1], "before layer 0, which has 0"),
        ([1] * 5, [0] * 5, "prompts for 5 layers, but the tower has 4"),
    ],
)
def test_invalid_schedule_is_rejected_with_the_layer(adds, removes, message):
    with pytest.raises(ClipError, match=message):
        prompt_lengths(adds, removes, 4)


# ---------------------------------------------------------------- CLIP is frozen


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_training_changes_only_prompts(precision, build, tiny):
    trainer = build(
        "MPL",
        "all",
        "PREC",
        precision,
        "PROMPT_DEPTH",
        3,
        backbone=tiny,
        options=("OPTIM.MAX_EPOCH", 1),
    )
    clip = trainer.model.clip
    learned = prompts_of(trainer)
    frozen = {key: value.clone() for key, value in clip.state_dict().items()}
    assert learned and all(key.startswith("prompt_learner.") for key in learned)
    assert list(learned) == [name for name, _ in trainer.model.named_parameters()]

    trainer.train()
    assert all(parameter.grad is None for parameter in clip.parameters())
    assert not any(module.training for module in clip.modules())
    assert differing(clip.state_dict(), frozen) == []
    assert differing(prompts_of(trainer), learned) == list(learned)
