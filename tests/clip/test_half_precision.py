"""PREC fp16 and bf16: half weights that nothing casts at each step; LayerNorm, prompts, loss and
optimiser in fp32.
"""

import pytest
import torch
from drawn import ADAPTED, METHODS
from marks import thorough_but

from clip.blocks import attention
from trainers.base import trainer as building

pytestmark = pytest.mark.slow

# Of logits, absolute; of gradients, relative to their norm in fp32. Measured on processors with and
# without bf16 units, at most: 0.24 and 0.13 in bf16, 0.06 and 0.023 in fp16.
BOUNDS = {"bf16": (0.35, 0.2), "fp16": (0.08, 0.035)}
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
QUICK = {
    "bf16": ("CoOp", "CoCoOp", "MPL", "PromptSRC", "CLIPLoRA"),
    "fp16": ("CoOp", "IVLP", "MPL", "MMRL"),
}
CASES = [
    (name, method)
    for name in TYPES
    for method in METHODS
    if name == "bf16" or method not in ADAPTED
]
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.manual_seed(0))
LABELS = torch.arange(4)


@pytest.fixture
def units(monkeypatch):
    """Of a CPU: one without them computes the same, but slowly."""
    monkeypatch.setattr(building, "cpu_has_bf16", lambda: True)


def step(trainer):
    torch.manual_seed(0)  # of dropout
    output = trainer.model.output(IMAGES)
    loss = trainer.method.loss(output, LABELS)[0]
    logits = output.logits
    assert loss.dtype == logits.dtype == torch.float32
    loss.backward()
    return logits.detach(), {
        name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize(
    "case", thorough_but([(name, each) for name in QUICK for each in QUICK[name]], CASES), ids=str
)
def test_logits_and_gradients_are_those_of_fp32_within_its_rounding(case, build, monkeypatch):
    name, method = case
    # Also fp16, on a CPU
    monkeypatch.setattr("trainers.base.trainer.usable", lambda wanted, device: wanted)
    half = build(method, "all", "PREC", name)
    whole = build(method)
    half.model.load_state_dict(whole.model.state_dict())
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    clip = half.model.clip
    assert (
        clip.visual.conv1.weight.dtype
        == clip.transformer.resblocks[0].mlp.c_fc.weight.dtype
        == TYPES[name]
    )
    assert clip.ln_final.weight.dtype == clip.visual.ln_pre.weight.dtype == torch.float32

    (half_logits, half_gradients), (logits, gradients) = step(half), step(whole)
    of_logits, of_gradients = BOUNDS[name]
    assert (half_logits - logits).abs().max() < of_logits
    assert not torch.equal(half_logits, logits)  # it was computed in half precision
    norm, difference = (
        torch.cat([tensor.flatten() for tensor in tensors]).norm()
        for tensors in (
            gradients.values(),
            [half_gradients[name] - gradients[name] for name in gradients],
        )
    )
    assert difference < of_gradients * norm


# Few keys: in fp32
@pytest.mark.parametrize(("keys", "scale", "limit"), [(5, 1, 0.02), (80, 1, 0.02), (80, 8, 0.1)])
@pytest.mark.parametrize("kind", ["all", "causal", "masked"])
def test_attention_and_its_gradients_are_those_of_fp32_within_its_rounding(
    keys, scale, limit, kind
):
    """A scale of 8 gives scores of up to 30, and sharp attention."""
    generator = torch.Generator().manual_seed(0)
    queries = keys if kind == "causal" else 3
    shapes = (2, queries, 4, 16), (2, keys, 4, 16), (2, keys, 4, 16)
    qkv = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    qkv[0] *= scale
    mask = torch.rand(2, 1, queries, keys, generator=generator) < 0.7 if kind == "masked" else None
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        inputs = [tensor.to(dtype).transpose(1, 2).requires_grad_() for tensor in qkv]
        added = (
            None
            if mask is None
            else torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf)
        )
        output = attention(*inputs, added, kind == "causal")
        assert output.dtype == dtype
        output.square().sum().backward()
        found.append([output, *(tensor.grad for tensor in inputs)])
    for half, whole in zip(*found, strict=True):
        assert (half.float() - whole).norm() < limit * whole.norm()


def test_tokens_between_layers_are_in_fp32(build, units):
    """In bf16, CoOp lost 20 points of accuracy on small_land with some seeds."""
    trainer = build("MPL", "all", "PREC", "bf16")
    types = {}
    clip = trainer.model.clip
    for tower, transformer in (("image", clip.visual.transformer), ("text", clip.transformer)):
        block = transformer.resblocks[1]
        block.ln_1.register_forward_pre_hook(
            lambda module, args, tower=tower: types.update({tower: args[0].dtype})
        )
    step(trainer)
    assert types == {"image": torch.float32, "text": torch.float32}
