"""CLIP backbones and their two towers under a prompt schedule. Knows nothing of methods or of the toolbox.

OpenAI's package of the same name is the model for `load`, `tokenize` and `available_models`; everything else serves
prompt learning: `load_backbone` finds and builds a frozen CLIP, `TextPrompts` and `Edit` say which vectors enter
which layer, and `encode_text` and `encode_image` run a tower under them: in `plain` step by step, in `fast` (the
default) without the work that cannot change the result.
"""

from . import fast, plain
from .backbone import CLIP, available_models, is_vit, load, load_backbone
from .errors import ClipError
from .fast import compiled_towers, encode_image, encode_text
from .schedule import Edit, Schedule, TextPrompts, prompt_lengths
from .tokenizer import tokenize

TOWERS = {"fast": fast, "plain": plain}

__all__ = [
    "TOWERS",
    "CLIP",
    "ClipError",
    "Edit",
    "Schedule",
    "TextPrompts",
    "available_models",
    "compiled_towers",
    "encode_image",
    "encode_text",
    "is_vit",
    "load",
    "load_backbone",
    "prompt_lengths",
    "tokenize",
]
