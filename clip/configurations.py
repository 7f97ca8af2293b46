"""Configurations from anybody: of these, only known keys with numbers and words are used.

open_clip, timm and transformers load and run what some other keys name (`auto_map`, `backbone`,
`attn_implementation`, `quantization_config`, ...), so no such file reaches them as it is.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
from open_clip import CLIPTextCfg, CLIPVisionCfg

from common.text import read_json

from .errors import ClipError

MAX_BYTES = 1 << 24  # of a JSON file: tokens that were added to a vocabulary may be thousands
MOST = 4_000_000  # of a number: the largest vocabularies have a million tokens
MOST_LAYERS = 1000
MOST_TOKENS = 10_000  # of a text

# The keys of open_clip_config.json, with a value of the same kind. None: any word or number.
KWARGS: dict[str, Any] = {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-5}}
SPLITTING = {"tokenizer_kwargs": {"clean": "lower", "strip_sep_token": False, "language": None}}
VISION = {field.name: field.default for field in fields(CLIPVisionCfg)} | KWARGS
TEXT = {field.name: field.default for field in fields(CLIPTextCfg)} | KWARGS | SPLITTING
MODEL = {
    "vision_cfg": VISION,
    "text_cfg": TEXT,
    "embed_dim": 1,
    "quick_gelu": False,
    "init_logit_scale": 1.0,
    "init_logit_bias": None,
    "nonscalar_logit_scale": False,
    "custom_text": False,
}
LISTS = ("layers", "image_size")
OPTIONAL = ("patch_size", "timm_proj", *KWARGS, *SPLITTING)
NAMES = ("hf_model_name", "hf_tokenizer_name")  # `hub` decides whose files they mean

# The kinds of text towers that open_clip reads, by `model_type`, and the sizes of each.
BERT = """vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act
    max_position_embeddings type_vocab_size layer_norm_eps pad_token_id hidden_dropout_prob
    attention_probs_dropout_prob"""
MT5 = """vocab_size d_model d_kv d_ff num_layers num_heads layer_norm_epsilon pad_token_id
    relative_attention_num_buckets relative_attention_max_distance feed_forward_proj dropout_rate"""
M2M = """vocab_size d_model encoder_layers encoder_attention_heads encoder_ffn_dim pad_token_id
    activation_function max_position_embeddings scale_embedding encoder_layerdrop dropout
    attention_dropout activation_dropout"""
TOWERS = {"bert": BERT, "roberta": BERT, "xlm-roberta": BERT, "mt5": MT5, "m2m_100": M2M}
ACTIVATIONS = "gelu gelu_new relu silu tanh gated-gelu gated-silu"

VOCABULARIES = [
    "tokenizer.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
]
OPTION_FILES = ["tokenizer_config.json", "special_tokens_map.json", "config.json"]
TOKENISER_FILES = [*VOCABULARIES, "merges.txt", "added_tokens.json", *OPTION_FILES]
TOKENISERS = "Bert|CLIP|Gemma|M2M100|MT5|Nllb|PreTrained|Roberta|Siglip|T5|XLMRoberta"
CLASSES = re.compile(f"(({TOKENISERS})Tokenizer(Fast)?|TokenizersBackend)?")
OPTIONS = """tokenizer_class model_type bos_token eos_token unk_token sep_token pad_token cls_token
    mask_token additional_special_tokens extra_special_tokens added_tokens_decoder add_bos_token
    add_eos_token add_prefix_space clean_up_tokenization_spaces do_basic_tokenize do_lower_case
    extra_ids keep_accents legacy legacy_behaviour model_max_length padding_side
    spaces_between_special_tokens split_special_tokens src_lang strip_accents tgt_lang
    tokenize_chinese_chars trim_offsets truncation_side"""


def checked(file: Path) -> dict:
    """The content of `open_clip_config.json`, whose `model_cfg` has known keys and plain values.

    Raises:
        ClipError: one is not known; UsageError: the file is not JSON.
    """
    config = read_configuration(file)
    model = config.get("model_cfg")
    if not isinstance(model, dict):
        raise refused(file, "model_cfg", model)
    model.pop("multimodal_cfg", None)  # of a text decoder, which is not built
    config["model_cfg"] = {"vision_cfg": None, "text_cfg": None} | model
    check_values(config["model_cfg"], MODEL, file)
    name = model["vision_cfg"].get("timm_model_name")
    if name and not timm.is_model(name):
        raise refused(file, "timm_model_name", name)
    return config


def read_configuration(file: Path) -> dict:
    """The content of a JSON file; {} if it has no keys."""
    content = read_json(file, MAX_BYTES)
    return content if isinstance(content, dict) else {}


def refused(file: Path, key: str, value: Any) -> ClipError:
    shown = type(value).__name__ if isinstance(value, dict | list) else repr(value)[:80]
    fault = f"{file} has {repr(key)[:80]}: {shown}, which is not accepted from a file"
    return ClipError(fault, "remove it, or state a value as in open_clip's configurations", file)


def check_values(values: Mapping, usual: Mapping, file: Path) -> None:
    """Raise ClipError for a key that the usual values lack, or a value of another kind."""
    for key, value in values.items():
        like = usual.get(key)
        if isinstance(like, dict) and isinstance(value, dict):
            check_values(value, like, file)
        elif key not in usual or not is_like(key, value, like):
            raise refused(file, key, value)


def is_like(key: str, value: Any, usual: Any) -> bool:
    """Whether a value is of the kind of the usual one, and a word or a number of a model."""
    if isinstance(value, list):
        return key in LISTS and len(value) <= 4 and all(is_like(key, item, 1) for item in value)
    if value is None:
        return usual is None or key in OPTIONAL
    if not isinstance(usual, float | None) and type(value) is not type(usual):
        return False
    if isinstance(value, str):
        return len(value) <= 200 and (key in NAMES or bool(re.fullmatch(r"[\w.-]*", value)))
    most = MOST_LAYERS if key.endswith("layers") else MOST
    most = MOST_TOKENS if key == "context_length" else most
    return isinstance(value, int | float) and abs(value) <= most


def text_tower(file: Path) -> dict[str, Any]:
    """Kind and sizes of a text tower in its `config.json`: arguments of `AutoConfig.for_model`.

    Raises:
        ClipError: it is of another kind, or a size is not a number; UsageError: it is not JSON.
    """
    stated = read_configuration(file)
    kind = stated.get("model_type")
    if not isinstance(kind, str) or kind not in TOWERS:
        raise refused(file, "model_type", kind)
    from transformers import AutoConfig

    usual = AutoConfig.for_model(kind)
    sizes = {key: stated[key] for key in TOWERS[kind].split() if key in stated}
    check_values(sizes, {key: getattr(usual, key) for key in sizes}, file)
    for key, value in sizes.items():
        if isinstance(value, str) and value not in ACTIVATIONS.split():
            raise refused(file, key, value)
        sizes[key] = type(getattr(usual, key))(value)
    if stated.get("is_decoder"):
        raise refused(file, "is_decoder", stated["is_decoder"])
    return {"model_type": kind, **sizes, "decoder_layers": 0, "num_decoder_layers": 0}


@contextmanager
def tokeniser_data(folder: Path) -> Iterator[dict[str, Any]]:
    """Within it, arguments of open_clip's `HFTokenizer` for a copy of what is data of a tokeniser.

    Raises:
        ClipError: its class is not in `TOKENISERS`; UsageError: its options are not JSON.
    """
    from transformers import AutoConfig, PretrainedConfig

    config = PretrainedConfig()  # without one, a name in the path would choose the class
    with TemporaryDirectory() as name:
        here = Path(name)
        for file in TOKENISER_FILES:
            if not (folder / file).is_file():
                continue
            if file not in OPTION_FILES:
                (here / file).symlink_to((folder / file).absolute())
                continue
            stated = read_configuration(folder / file)
            known = {key: stated[key] for key in OPTIONS.split() if key in stated}
            kind = known.get("tokenizer_class")
            if not CLASSES.fullmatch(str(kind or "")):
                raise refused(folder / file, "tokenizer_class", kind)
            if file != "config.json":
                (here / file).write_text(json.dumps(known))
                continue
            if known.get("model_type") in [*TOWERS]:
                config = AutoConfig.for_model(known["model_type"])
            config.tokenizer_class = kind or None
        only_data = {"trust_remote_code": False, "local_files_only": True}
        yield {"tokenizer_name": name, "config": config, **only_data}
