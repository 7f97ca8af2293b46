"""Tiny models of open_clip's families, with its own model beside ours: random weights, widths of 32
and two layers.
"""

import json
import re
import tempfile
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import timm
import torch
from marks import to_json

import clip
from clip.building import CLIP, of_clip, unpacked
from clip.hub import text_model

VIT = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
TEXT = {"context_length": 32, "width": 32, "heads": 2, "layers": 2}
# Arguments of timm.create_model that make a family tiny.
TRUNK = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALLER = {
    "eva": TRUNK,
    "vit_pe": TRUNK,
    "siglip": TRUNK,
    "vit_large": TRUNK,
    "mci_224": {"img_size": 64, "depth": 2},
    "vitamin": {"img_size": 64, "depth": 2},
    "fastvit": {"layers": (1, 1, 1, 1), "embed_dims": (32, 64, 128, 256)},
    "convnext": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
}
FAMILIES = {
    "CLIP": "ViT-B-16",
    "CLIPA": "ViT-L-14-CLIPA",
    "CoCa": "coca_ViT-B-32",
    "ConvNeXt": "convnext_base",
    "EVA-01": "EVA01-g-14",
    "EVA-02": "EVA02-B-16",
    "MetaCLIP 2": "ViT-H-14-worldwide",
    "MobileCLIP-B": "MobileCLIP-B",
    "MobileCLIP2-L": "MobileCLIP2-L-14",
    "MobileCLIP-S": "MobileCLIP-S1",
    "PE-Core": "PE-Core-T-16-384",
    "ResNet": "RN50",
    "SigLIP": "ViT-B-16-SigLIP",
    "ViTamin": "ViTamin-S",
}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
WORDS = {"vocab_size": 1000, "pad_token_id": 1}
ENCODER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "scale_embedding": True,
}
# Configurations of the library transformers, their sizes, and what is read.
HUGGING_FACE = {
    "RoBERTa": ("RobertaConfig", SIZES, "mean_pooler"),
    "BERT": ("BertConfig", SIZES, "cls_pooler"),
    "mT5": (
        "MT5Config",
        {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
        "mean_pooler",
    ),
    "NLLB": ("M2M100Config", ENCODER, "cls_pooler"),
}
CONVOLUTIONS = {"ConvNeXt", "MobileCLIP-S", "ResNet"}


@contextmanager
def small_timm(name: str):
    """Within it, timm makes the model of this name tiny."""
    options = next((options for part, options in SMALLER.items() if name and part in name), {})
    with mock.patch.object(
        open_clip.timm_model.timm, "create_model", partial(timm.create_model, **options)
    ):
        yield options.get("img_size", 32)


def tiny_config(arch: str) -> dict:
    """The configuration of an architecture with small sizes and at most a thousand tokens, unless
    they are CLIP's.
    """
    config = open_clip.get_model_config(arch)
    vision = config["vision_cfg"]
    text = config["text_cfg"]
    if isinstance(vision.get("layers"), list):
        vision |= {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64}
    elif not vision.get("timm_model_name"):
        vision |= VIT | (
            {"attn_pooler_queries": 5, "attn_pooler_heads": 2}
            if vision.get("attentional_pool")
            else {}
        )
    text |= TEXT | ({} if text.get("vocab_size") == 49408 else {"vocab_size": 1000})
    keys = (
        {"multimodal_cfg": config["multimodal_cfg"] | TEXT | {"layers": 1}}
        if "multimodal_cfg" in config
        else {}
    )
    # timm's own pooling and head have the width of its tokens.
    return config | {"embed_dim": 32} | keys


def open_clips(config: dict) -> torch.nn.Module:
    """open_clip's own model of a configuration; no tensor of it is zero or one throughout."""
    config = json.loads(json.dumps(config))
    custom = config.pop("custom_text", False)
    kind = (
        open_clip.CoCa
        if "multimodal_cfg" in config
        else open_clip.CustomTextCLIP
        if custom
        else open_clip.CLIP
    )
    with not_initialised():
        model = kind(**config).eval()
    generator = torch.Generator().manual_seed(0)
    for key, parameter in model.named_parameters():
        if not key.startswith("logit"):
            is_scale = parameter.dim() < 2 and key.endswith(
                ("weight", "gamma", "gamma_1", "gamma_2")
            )
            scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.data = (
                torch.randn(parameter.shape, generator=generator).mul_(scale).add_(is_scale)
            )
    return model.requires_grad_(False)


@contextmanager
def not_initialised():
    """Within it, models do not draw the weights that they get afterwards, which would take
    seconds.
    """
    names = [name for name in dir(torch.nn.init) if name.endswith("_") and not name.startswith("_")]
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(
                mock.patch.object(torch.nn.init, name, lambda tensor, *given, **options: tensor)
            )
        for name in ("normal_", "uniform_", "erfinv_"):
            stack.enter_context(
                mock.patch.object(torch.Tensor, name, lambda tensor, *given, **options: tensor)
            )
        yield


def both(arch: str) -> tuple[torch.nn.Module, CLIP]:
    """open_clip's tiny model of an architecture, and ours with its weights."""
    config = tiny_config(arch)
    name = config["vision_cfg"].get("timm_model_name")
    with small_timm(name) as side:
        if name:
            config["vision_cfg"]["image_size"] = side
        theirs = open_clips(config)
        ours = CLIP(**of_clip(config)).eval()
    return theirs, with_weights(ours, theirs, config["text_cfg"])


def with_weights(ours: CLIP, theirs: torch.nn.Module, words: dict) -> CLIP:
    """Our model with the weights of open_clip's, and a tokeniser of its vocabulary."""
    ours.load_state_dict(unpacked(theirs.state_dict(), ours))
    if ours.vocab_size != 49408:
        ours.tokenizer = clip.tokenizer.OtherTokenizer(
            Letters(words), chr, ours.context_length, "letters"
        )
    return ours.requires_grad_(False)


def read_by_hugging_face(kind: str) -> tuple[torch.nn.Module, CLIP]:
    """The same with a text tower of the library transformers, one of `HUGGING_FACE`."""
    import transformers

    name, sizes, pooler = HUGGING_FACE[kind]
    with tempfile.TemporaryDirectory() as folder:
        getattr(transformers, name)(**WORDS, **sizes).save_pretrained(folder)
        text = {
            "hf_model_name": folder,
            "hf_model_pretrained": False,
            "hf_pooler_type": pooler,
            "context_length": 32,
        }
        config = {"embed_dim": 32, "custom_text": True, "vision_cfg": VIT, "text_cfg": text}
        theirs = open_clips(config)
        ours = CLIP(**of_clip(with_sizes(config))).eval()
    return theirs, with_weights(ours, theirs, {"pool_type": "eos", "eos_id": 2})


def with_sizes(config: dict) -> dict:
    """A configuration whose text tower is in a folder, with its sizes instead."""
    text = config["text_cfg"]
    return config | {"text_cfg": text_model(text, Path(text.get("hf_model_name", "")), None)}


class Letters:
    """A tokeniser with a token for each word, as its letters add up; its ends are those that the
    text tower reads.
    """

    def __init__(self, text_cfg: dict):
        pool = text_cfg.get("pool_type", "argmax")
        self.start = {"eos": [101], "argmax": [998]}.get(pool, [])
        self.end, self.pad = {"eos": ([text_cfg.get("eos_id")], 1), "argmax": ([999], 0)}.get(
            pool, ([1], 1)
        )

    def __call__(self, texts, length):
        rows = []
        for text in texts:
            words = [200 + sum(map(ord, word)) % 700 for word in text.replace(".", " .").split()]
            row = [*self.start, *words, *self.end]
            rows.append(row + [self.pad] * (length - len(row)))
        return torch.tensor(rows)


def rows_of(model: CLIP, *texts: str) -> torch.Tensor:
    return clip.tokenizer_of(model)(list(texts)).long()


def write_folder(folder: Path, theirs: torch.nn.Module, config: dict, preprocess: dict) -> Path:
    """A folder of open_clip's form."""
    from safetensors.torch import save_model

    folder.mkdir()
    to_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocess})
    save_model(theirs, str(folder / "open_clip_model.safetensors"))
    return folder


def saved(family: str, folder: Path, preprocess: dict | None = None, **text: Any) -> Path:
    """A folder of open_clip's form with its tiny model; `text` are more settings of the text
    tower.
    """
    config = tiny_config(FAMILIES[family])
    config["text_cfg"] |= text
    with small_timm(config["vision_cfg"].get("timm_model_name")) as side:
        config["vision_cfg"]["image_size"] = (
            side if config["vision_cfg"].get("timm_model_name") else 32
        )
        return write_folder(folder, open_clips(config), config, preprocess or {})


def write_tokeniser(folder: Path) -> None:
    """Write a tokeniser of the library transformers, of a sentence and EuroSAT's classes, without
    SOS.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = re.findall(
        r"\S+", "<unk> </s> a photo of . X red green field blue lake grey white snow black"
    )
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokens = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    to_json(folder / "tokenizer_config.json", kind | tokens)
