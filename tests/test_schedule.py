"""The prompt schedule: the number of prompts in each layer, and the methods that are special cases of MPL."""

import pytest
import torch
from drawn import small_clip

from clip import TOWERS, ClipError, prompt_lengths
from trainers.mpl import MPLPrompts


@pytest.fixture(params=TOWERS)
def encode_image(request):
    return TOWERS[request.param].encode_image


def mpl(model, n_ctx, adds, removes):
    return MPLPrompts(model, ["river", "annual crop"], n_ctx, "a photo of a", adds, removes)


@pytest.mark.parametrize(
    ("n", "a", "r", "depth"), [(1, 2, 1, 9), (2, 2, 1, 5), (2, 1, 2, 4), (4, 3, 4, 2), (3, 0, 1, 4)]
)
def test_number_of_prompts_grows_linearly_up_to_the_depth(n, a, r, depth):
    lengths = prompt_lengths([n, *[a * n] * (depth - 1)], [0, *[r] * (depth - 1)], 12)
    assert lengths == [n + min(layer, depth - 1) * (a * n - r) for layer in range(12)]


def test_add_and_remove_can_differ_by_layer(encode_image):
    model, lengths = small_clip({"layers": 6}, {"layers": 6}), []
    prompts = mpl(model, 2, [0, 3, 1, 0], [1, 0, 7, 2])
    for block in model.visual.transformer.resblocks:
        block.ln_1.register_forward_pre_hook(lambda ln_1, x: lengths.append(x[0].shape[1] - 5))  # CLS, patches
    encode_image(model, torch.zeros(1, 3, 32, 32), prompts.vision(), read=["patches"])
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


def test_mpl_on_vit_b16_learns_6702336_numbers():
    widths_of_vit_b16 = small_clip({"width": 768, "layers": 1}, {"width": 512, "heads": 8, "layers": 1})
    prompts = mpl(widths_of_vit_b16, 1, [2] * 8, [1] * 8)
    assert sum(parameter.numel() for parameter in prompts.parameters()) == 6_702_336
