"""The prompt schedule: the number of prompts in each layer, and the methods that are special cases of MPL."""

import pytest
import torch
from drawn import small_clip

from clip import TOWERS, ClipError, plain, prompt_lengths
from trainers.mpl import MPLPrompts


@pytest.fixture(params=TOWERS)
def encode_image(request):
    return TOWERS[request.param].encode_image


def mpl(model, n_ctx, adds, removes):
    return MPLPrompts(model, ["river", "annual crop"], n_ctx, "a photo of a", adds, removes)


def seen(blocks, run):
    """The length of each block's input sequence, observed at its ln_1, where it enters first in either tower."""
    lengths = {}

    def note(ln_1, x):
        lengths.setdefault(ln_1, x[0].shape[1])

    handles = [block.ln_1.register_forward_pre_hook(note) for block in blocks]
    run()
    for handle in handles:
        handle.remove()
    return list(lengths.values())


def test_setting_of_the_paper_has_one_to_nine_prompts_and_nine_after(encode_image):
    model = small_clip({"layers": 12}, {"layers": 12})
    prompts = mpl(model, 1, [2] * 8, [1] * 8)
    paper = [1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9]
    assert prompt_lengths([1, *[2] * 8], [0, *[1] * 8], 12) == paper
    images, blocks = torch.zeros(1, 3, 32, 32), model.visual.transformer.resblocks
    without_prompts = 1 + 2 * 2  # CLS and patches
    lengths = seen(blocks, lambda: encode_image(model, images, prompts.vision()))
    assert [length - without_prompts for length in lengths] == paper
    assert seen(model.transformer.resblocks, lambda: plain.encode_text(model, prompts.text(None))) == [77] * 12


@pytest.mark.parametrize(
    ("n", "a", "r", "depth"), [(1, 2, 1, 9), (2, 2, 1, 5), (2, 1, 2, 4), (4, 3, 4, 2), (3, 0, 1, 4)]
)
def test_number_of_prompts_grows_linearly_up_to_the_depth(n, a, r, depth):
    lengths = prompt_lengths([n, *[a * n] * (depth - 1)], [0, *[r] * (depth - 1)], 12)
    assert lengths == [n + min(layer, depth - 1) * (a * n - r) for layer in range(12)]


def test_add_and_remove_can_differ_by_layer(encode_image):
    model = small_clip({"layers": 6}, {"layers": 6})
    prompts = mpl(model, 2, [0, 3, 1, 0], [1, 0, 7, 2])
    lengths = seen(
        model.visual.transformer.resblocks,
        lambda: encode_image(model, torch.zeros(1, 3, 32, 32), prompts.vision()),
    )
    assert [length - 5 for length in lengths] == [2, 1, 7, 2, 0, 0]
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


# ---------------------------------------------------------------- MPL's special cases


def with_replaced_prompts(model, images, prompts):
    """open_clip's own tower with deep prompts added by hooks: appended before ln_pre, then overwritten."""
    visual, n = model.visual, len(prompts[0])

    def with_new(x, new):
        return torch.cat([x, new.expand(len(x), -1, -1)], dim=1)

    handles = [visual.ln_pre.register_forward_pre_hook(lambda _, x: with_new(x[0], prompts[0]))]
    for block, new in zip(visual.transformer.resblocks[1:], prompts[1:], strict=False):
        hook = block.register_forward_pre_hook(lambda _, x, new=new: with_new(x[0][:, :-n], new))
        handles.append(hook)
    features = visual(images)
    for handle in handles:
        handle.remove()
    return features


@pytest.mark.parametrize("depth", [1, 3, 4], ids=["depth 1 is shallow prompting", "depth 3", "depth 4"])
def test_add_equal_to_remove_is_deep_prompting(depth, encode_image):
    model, n = small_clip({"layers": 4}, {"layers": 4}), 2
    prompts = mpl(model, n, [1] * (depth - 1), [n] * (depth - 1))
    images = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0))
    deep = [prompts.proj(prompts.ctx)]
    deep += [prompts.txt2img_proj[0][str(i)](ctx) for i, ctx in enumerate(prompts.compound_prompts_text)]
    assert len(deep) == depth
    expected = with_replaced_prompts(model, images, deep)
    torch.testing.assert_close(encode_image(model, images, prompts.vision()).feature, expected)
    assert not torch.allclose(expected, model.encode_image(images), atol=1e-3)


def test_mpl_on_vit_b16_learns_6702336_numbers():
    widths_of_vit_b16 = small_clip({"width": 768, "layers": 1}, {"width": 512, "heads": 8, "layers": 1})
    prompts = mpl(widths_of_vit_b16, 1, [2] * 8, [1] * 8)
    assert sum(parameter.numel() for parameter in prompts.parameters()) == 6_702_336
