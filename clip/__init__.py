"""CLIP backbones and their two towers under a prompt schedule, independent of methods and of the
toolbox.

`load`, `tokenize` and `available_models` are those of OpenAI's package of the same name. The rest
serves prompt learning: `load_backbone` finds and builds a frozen CLIP, `TextPrompts` and `Edit`
describe which vectors enter which layer, and `encode_text` and `encode_image` run a tower under
them. `TOWERS` has two forms of these: "plain", step by step, and "fast" (the default), without the
work that cannot change the result.
"""

from . import imports, plain  # `imports` before open_clip is imported elsewhere
from .adapters import (
    BlockAdapter,
    WithAdded,
    adapt,
    adapt_input,
    folded_weights,
    private_copy,
    token_dropout,
)
from .anatomy import (
    has_local_features,
    image_blocks,
    image_tower,
    is_vit,
    projection,
    takes_prompts,
    text_blocks,
    text_width,
    vision_width,
    word_table,
)
from .backbone import (
    CLIP,
    OF_CLIP,
    available_models,
    is_known,
    is_published,
    load,
    load_backbone,
    preprocessing,
    weight_file,
    weights_sha256,
)
from .blocks import local_features
from .building import keep_backbones
from .errors import ClipError
from .fast import FAST, compiled_towers, encode_image, encode_text
from .plain import PLAIN
from .schedule import Edit, Schedule, TextPrompts, prompt_lengths
from .tokenizer import Tokenizer, tokenize, tokenizer_of
from .towers import ImageOutput, Read, Towers
from .vision_only import reads_texts, without_texts

TOWERS: dict[str, Towers] = {"fast": FAST, "plain": PLAIN}
