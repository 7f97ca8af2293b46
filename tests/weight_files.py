"""Weight files for tests: OpenAI's form, crafted archives, and the check that a file is refused."""

import io
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn

import clip

SIZES = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
SECONDS = 10.0  # for a hostile file; most take milliseconds


def save_as_openai(model: open_clip.CLIP, config: dict, path: Path) -> None:
    """Trace a CLIP in half precision, with its sizes among its tensors and a mask as an attribute of every block."""
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
    """Check that reading a file fails: one line with its name and these words, and soon."""
    start = time.monotonic()
    with pytest.raises(clip.ClipError) as caught:
        read(str(path))
    message = str(caught.value)
    assert time.monotonic() - start < SECONDS
    assert str(path) in message and message.isprintable() and len(message) < 1000, message
    assert [word for word in words if word not in message] == [], message
    return message


def text(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


NESTED = b"K\1" + b"q\0h\0\x86" * 60  # a tuple of two tuples of two tuples ...: its hash never ends


class Stored:
    """A tensor as torch pickles it, with any numbers."""

    def __init__(self, key="0", length=4, offset=0, size=(4,), stride=(1,), kind=torch.FloatStorage):
        self.identity = "storage", kind, key, "cpu", length
        self.layout = offset, size, stride, False, OrderedDict()

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (Identity(self.identity), *self.layout)


class Identity(tuple):
    """The reference to a storage in a pickle."""


def pickled(value: object) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return tuple(item) if isinstance(item, Identity) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


NUMBERS = struct.pack("<4f", 1, 2, 3, 4)


def write(
    path: Path,
    data: bytes | object,
    *more: tuple[str, bytes],
    numbers: bytes = NUMBERS,
    how: int = zipfile.ZIP_STORED,
    folder: str = "vit/",
) -> None:
    """Write an archive with a `data.pkl`, `data/0` and more members, those with the same name twice."""
    members = {"data.pkl": data if isinstance(data, bytes) else pickled(data), "data/0": numbers}
    with zipfile.ZipFile(path, "w", how) as file:
        for name, content in [*members.items(), *more]:
            file.writestr(f"{folder}{name}", content)
