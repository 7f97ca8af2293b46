"""Blocks: which ones the fast towers take apart, and that others are computed as they are."""

from copy import deepcopy

import pytest
import torch
from drawn import small_clip
from schedules import assert_same
from torch import nn

from clip import Edit, TextPrompts, fast, plain, tokenize
from clip.blocks import is_standard

LAYERS = 3
WIDTH = 64


@pytest.fixture(scope="module")
def clip():
    return small_clip(
        {"layers": LAYERS, "width": WIDTH}, {"layers": LAYERS, "width": WIDTH}
    ).double()


@pytest.fixture(autouse=True)
def _not_warned():
    fast.warn_of_plain_form.cache_clear()


def with_blocks(clip, change):
    clip = deepcopy(clip)
    for transformer in (clip.transformer, clip.visual.transformer):
        transformer.resblocks = nn.ModuleList(map(change, transformer.resblocks))
    return clip


def outputs(form, clip, schedule=()):
    images = torch.randn(
        2,
        3,
        *clip.visual.image_size,
        dtype=torch.double,
        generator=torch.Generator().manual_seed(1),
    )
    texts = TextPrompts(tokenize(["a cat", "a big dog"]))
    return form.encode_image(clip, images, schedule).feature, form.encode_text(clip, texts)


@pytest.mark.parametrize("where", ["", "attn", "mlp", "mlp.c_fc", "mlp.gelu"])
def test_forward_hooks_are_called(where, clip):
    seen = []
    clip = deepcopy(clip)
    for transformer in (clip.transformer, clip.visual.transformer):
        transformer.resblocks[1].get_submodule(where).register_forward_hook(
            lambda *_: seen.append(1)
        )
    with pytest.warns(UserWarning, match="runs in its plain form, which takes longer"):
        outputs(fast, clip)
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["mlp.c_fc", "mlp.c_proj", "attn.out_proj", "ln_2"])
def test_modules_trained_in_a_block_get_the_gradients_of_the_plain_form(name, clip):
    clip = deepcopy(clip)
    learned = []
    for transformer in (clip.transformer, clip.visual.transformer):
        learned += transformer.resblocks[1].get_submodule(name).requires_grad_().parameters()
    assert_same(outputs(fast, clip), outputs(plain, clip), learned)


def test_frozen_weights_changed_in_place_are_read_again(clip):
    clip = deepcopy(clip)
    outputs(fast, clip)
    clip.load_state_dict({key: 1.5 * tensor + 0.1 for key, tensor in clip.state_dict().items()})
    assert_same(outputs(fast, clip), outputs(plain, clip), [])
    with torch.inference_mode():  # where changes are not counted
        clip = deepcopy(clip)
        outputs(fast, clip)
        clip.load_state_dict({key: 0.5 * tensor for key, tensor in clip.state_dict().items()})
        assert all(map(torch.allclose, outputs(fast, clip), outputs(plain, clip)))


def doubled(block):
    class Block(type(block)):
        def forward(self, x, **options):
            return 2 * super().forward(x, **options)

    block.__class__ = Block
    return block


def scaled(block):
    block.attn.head_scale = nn.Parameter(torch.ones(1))
    return block


class Wrapped(nn.Module):
    """A block without `attn`."""

    def __init__(self, block):
        super().__init__()
        self.inner = block

    def forward(self, x, **options):
        return self.inner(x, **options)

    def get_weight_dtype(self):
        return self.inner.get_weight_dtype()


CHANGES = {
    "subclass": doubled,
    "parameter": scaled,
    "wrapper": Wrapped,
    "open_clip's custom block": None,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_blocks_run_in_the_plain_towers(change, clip):
    vision = {"layers": LAYERS, "width": WIDTH, "qk_norm": True}
    text = {"layers": LAYERS, "scale_fc": True}
    other = with_blocks(clip, change) if change else small_clip(vision, text).double()
    assert not is_standard(other.transformer) and not is_standard(other.visual.transformer)
    prompt = [Edit(add=torch.randn(1, WIDTH, dtype=torch.double))]
    with pytest.warns(UserWarning, match="runs in its plain form, which takes longer"):
        found = outputs(fast, other, prompt)
    for expected, got in zip(outputs(plain, other, prompt), found, strict=True):
        assert torch.equal(expected, got)
