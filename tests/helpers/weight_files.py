"""Weight files for tests: OpenAI's form, a hostile program, and the check that a file is
refused.
"""

from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn

import clip

SIZES = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}


def save_as_openai(model: open_clip.CLIP, config: dict, path: Path) -> None:
    """Trace a CLIP in half precision, with its sizes among its tensors and a mask as an attribute
    of every block.
    """
    half = open_clip.CLIP(**config, cast_dtype=torch.float16)
    open_clip.convert_weights_to_lp(half)
    half.load_state_dict(model.state_dict())
    for name, size in SIZES.items():
        vars(half).pop(name, None)
        half.register_buffer(name, torch.tensor(size))
    for block in half.transformer.resblocks:
        block.attn_mask = half.attn_mask.clone()
    size = config["vision_cfg"]["image_size"]
    inputs = torch.zeros(1, 3, size, size).half(), clip.tokenize("a river")
    torch.jit.trace(half.eval(), inputs, check_trace=False).save(path)


class Hostile(nn.Module):
    """A module whose code runs when TorchScript loads it."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path, self.training = state
        torch.from_file(self.path, True, 4).fill_(0.0)


def refused(path: Path, *words: str, read: Callable = clip.load_backbone) -> str:
    """Check that reading a file fails: one line with its name and these words."""
    with pytest.raises(clip.ClipError) as caught:
        read(str(path))
    message = str(caught.value)
    assert str(path) in message and message.isprintable() and len(message) < 1000, message
    assert [word for word in words if word not in message] == [], message
    return message
