"""Adapters in the blocks: both forms of the towers agree, dropout included, and the frozen backbone
stays as it is.
"""

from functools import partialmethod

import pytest
import torch
from drawn import small_clip
from marks import thorough_but
from torch import nn

from clip import (
    BlockAdapter,
    Edit,
    TextPrompts,
    adapt,
    fast,
    folded_weights,
    plain,
    private_copy,
    token_dropout,
    tokenize,
)
from trainers.cliplora import LoRA

LAYERS = 3
TEXTS = ["a photo of a river.", "a photo of a very long street.", "forest"]


class Everything(BlockAdapter):
    """A small network at each of the four places, perhaps with dropout."""

    def __init__(self, width, p):
        super().__init__()
        self.p = p
        sizes = {"qkv": 3 * width, "out": width, "mlp_change": width, "beside": width}
        for name, size in sizes.items():
            self.add_module(name, nn.Sequential(nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, size)))

    @property
    def is_stochastic(self):
        return self.training and self.p > 0

    def change(self, name, x):
        return self.get_submodule(name)(token_dropout(x, self.p) if self.is_stochastic else x)

    attention_input = partialmethod(change, "qkv")
    attention_output = partialmethod(change, "out")
    mlp = partialmethod(change, "mlp_change")
    parallel = partialmethod(change, "beside")


class Linear(BlockAdapter, nn.Linear):
    mlp = nn.Linear.forward


def test_an_adapter_may_be_a_module_of_torch_too():
    adapter = Linear(4, 3, bias=False)
    assert adapter.defined == {"mlp"}
    assert adapter.weight.shape == (3, 4) and adapter.bias is None


@pytest.fixture
def adapted():
    """`adapted(p, layers)` -> a CLIP, its copy with adapters in these layers of both towers, and
    the adapters.
    """

    def adapted(p, layers, make=Everything):
        torch.manual_seed(0)
        clip = small_clip({"layers": LAYERS, "width": 64}, {"layers": LAYERS}).double()
        copy = private_copy(clip)
        adapters = nn.ModuleList()
        for tower in (copy, copy.visual):
            width = tower.transformer.resblocks[0].ln_1.normalized_shape[0]
            for layer in layers:
                adapters.append(make(width, p).double())
                adapt(tower, layer, adapters[-1])
        return clip, copy, adapters

    return adapted


def outputs(form, clip, by_image=False):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, *clip.visual.image_size, dtype=torch.double, generator=generator)
    ids = tokenize(TEXTS, clip.context_length)
    ctx = torch.randn(*([2, 1] if by_image else []), 2, 64, dtype=torch.double, generator=generator)
    deep = [Edit(), Edit(2, torch.randn(3, 64, dtype=torch.double, generator=generator))]
    return [
        form.encode_image(clip, images, [Edit(add=torch.ones(2, 64, dtype=torch.double))]).feature,
        form.encode_text(clip, TextPrompts(ids)),
        form.encode_text(clip, TextPrompts(ids, ctx, deep=deep)),
    ]


def lora(params):
    """Low-rank maps that change something, as B is not zero."""

    def make(width, p):
        made = LoRA(width, 3, 0.5, params, p)
        for name, parameter in made.named_parameters():
            nn.init.normal_(
                parameter, std=width**-0.5, generator=torch.Generator().manual_seed(len(name))
            )
        return made

    return make


@pytest.mark.parametrize("layers", thorough_but(([0, 1, 2],), ([0, 1, 2], [1], [2])), ids=str)
@pytest.mark.parametrize("p", [0, 0.25])
@pytest.mark.parametrize(
    "make", [Everything, lora("qkv"), lora("v"), lora("ko")], ids=["all", "qkv", "v", "ko"]
)
def test_both_forms_of_the_towers_have_the_same_outputs_and_gradients(make, p, layers, adapted):
    clip, copy, adapters = adapted(p, layers, make)
    found = []
    for form in (plain, fast):
        torch.manual_seed(5)
        values = outputs(form, copy)
        found.append(
            [
                *values,
                *torch.autograd.grad(
                    sum(value.sin().sum() for value in values), adapters.parameters()
                ),
            ]
        )
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
    assert not torch.allclose(found[0][0], outputs(plain, clip)[0])


@pytest.mark.parametrize("params", ["qkvo", "v", "ko"])
def test_folded_low_rank_maps_compute_the_same(params, adapted):
    clip, copy, adapters = adapted(0, [1, LAYERS - 1], lora(params))
    images = torch.randn(2, 3, *clip.visual.image_size, dtype=torch.double)
    before = [*outputs(plain, copy), fast.encode_image(copy, images, read=["local"]).local]
    clip.load_state_dict(folded_weights(copy))
    after = [*outputs(plain, clip), plain.encode_image(clip, images, read=["local"]).local]
    for expected, got in zip(before, after, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
    adapters.to("meta")
    assert {tensor.device.type for tensor in folded_weights(copy.to("meta")).values()} == {"meta"}


def test_dropout_differs_by_step_and_an_evaluation_has_none(adapted):
    _, copy, adapters = adapted(0.25, [1])
    a, b = (outputs(fast, copy)[1] for _ in range(2))
    assert not torch.allclose(a, b)
    adapters.eval()
    before = torch.get_rng_state()
    a, b = (outputs(fast, copy)[1] for _ in range(2))
    assert torch.equal(a, b) and torch.equal(before, torch.get_rng_state())


def test_dropout_keeps_the_mean_and_its_share():
    torch.manual_seed(0)
    x = torch.ones(40, 30, 50)
    for p in (0.1, 0.25, 0.5):
        dropped = token_dropout(x, p)
        assert (dropped == 0).double().mean() == pytest.approx(p, abs=0.005)
        assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
    torch.manual_seed(3)
    whole = token_dropout(x, 0.25)
    torch.manual_seed(3)
    assert torch.equal(token_dropout(x[:, :7], 0.25), whole[:, :7])
