"""PREC fp16, the default of the published YAML files, on a CPU: half weights; LayerNorm, prompts and loss in fp32."""

import pytest
import torch
from drawn import ADAPTED, METHODS
from marks import thorough_but

from clip import load_backbone
from trainers.base import precision

pytestmark = pytest.mark.slow

LOGITS, GRADIENT = 0.08, 0.02  # absolute; relative to the norm in fp32


def test_a_cpu_multiplies_no_faster_in_fp16(monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    assert [precision.usable(name, torch.device("cpu")) for name in ("fp16", "bf16", "amp")] == ["fp32", "bf16", "amp"]


@pytest.mark.parametrize(
    "method", thorough_but(("CoOp", "IVLP", "MPL", "MMRL"), [name for name in METHODS if name not in ADAPTED])
)
def test_half_weights_give_the_logits_and_gradients_of_fp32(method, build, deep):
    trainer = build(method, "all", options=("MODEL.BACKBONE.TOWERS", "fast"))
    images = torch.randn(4, 3, 32, 32, generator=torch.manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3])

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        trainer.model.zero_grad()
        output = trainer.model.output(images)
        loss, logits = trainer.loss(output, labels)[0], output.logits
        assert loss.dtype == logits.dtype == torch.float32
        loss.backward()
        return logits.detach(), {name: p.grad.clone() for name, p in trainer.model.named_parameters()}

    logits, gradients = step()
    half = load_backbone(str(deep), "fp16")
    assert half.visual.conv1.weight.dtype == half.transformer.resblocks[0].mlp.c_fc.weight.dtype == torch.float16
    assert half.ln_final.weight.dtype == half.visual.ln_pre.weight.dtype == torch.float32
    trainer.model._clips = (half, half)
    half_logits, half_gradients = step()
    assert (half_logits - logits).abs().max() < LOGITS
    whole, difference = (
        torch.cat([tensor.flatten() for tensor in tensors]).norm()
        for tensors in (gradients.values(), [half_gradients[name] - gradients[name] for name in gradients])
    )
    assert difference < GRADIENT * whole
    assert not torch.equal(half_logits, logits)  # it was computed in half precision
