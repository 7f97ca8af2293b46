"""What a stranger may send as a backbone, and have on the Hub: configurations that would load and
run other things.
"""

import pickle
import shutil
from pathlib import Path
from typing import Any

import yaml
from hostile import CALLS, NAMES, NUMBERS, changed_tree, replaced
from hypothesis import strategies as st
from marks import of_json, to_json
from tiny_models import VIT, read_by_hugging_face, write_folder, write_tokeniser

OPEN_CLIP = "open_clip_config.json"
CONFIG = "config.json"
OPTIONS = "tokenizer_config.json"
TOKENS = "special_tokens_map.json"
EVIL = "import os\nopen('../outside/made', 'w')\nos.mkdir('ran')\n"
EVIL += (
    "from transformers import PreTrainedConfig\nclass EvilConfig(PreTrainedConfig):\n    "
    "model_type = 'evil'\n"
)
TABLE = yaml.safe_load(Path(__file__).with_name("strangers.yaml").read_text())
WORDS = TABLE["words"]
FORMS: dict[str, tuple[str, tuple, dict[str, Any]]] = {
    name: (form["file"], tuple(form["place"]), form["keys"])
    for name, form in TABLE["forms"].items()
}
BACKBONE = FORMS["a model of the Hub in a text tower"][2]
AUTO_MAP = FORMS["code beside a text tower"][2]["auto_map"]
FAR_MAP = FORMS["code of another repository"][2]["auto_map"]
FOUR_BITS = FORMS["quantization"][2]["quantization_config"]
PATHS = FORMS["paths of a tokeniser"][2]
TEXT = ("model_cfg", "text_cfg")
VISION = ("model_cfg", "vision_cfg")

KEYS = sorted(
    {key for _, _, keys in FORMS.values() for key in keys}
    | {"backbone_sha256", "tokenizer_file", "name"}
)


def write_stranger(folder: Path) -> Path:
    """A sound folder of open_clip's form whose text tower is a BERT, with a tokeniser, and code
    that nobody may run.
    """
    theirs, _ = read_by_hugging_face("BERT")
    text = {
        "hf_model_name": "a/b",
        "hf_pooler_type": "cls_pooler",
        "hf_tokenizer_name": "a/b",
        "context_length": 32,
    }
    config = {
        "embed_dim": 32,
        "vision_cfg": VIT,
        "text_cfg": text | {"tokenizer_kwargs": {"clean": "lower"}},
    }
    write_folder(folder, theirs, config, {})
    theirs.text.config.save_pretrained(folder)
    write_tokeniser(folder)
    to_json(folder / TOKENS, {"pad_token": "</s>"})
    (folder / "evil.py").write_text(EVIL)
    return folder


def fill_hub(cache: Path, clip: Path) -> None:
    """The cache of the Hub's client with what evil people have there; stranger/clip is the folder
    `clip`.
    """

    def repository(name: str) -> Path:
        place = cache / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs/main").write_text("0" * 40)
        return place / "snapshots" / ("0" * 40)

    trunk = {
        "architecture": "resnet18",
        "num_classes": 0,
        "pretrained_cfg": {"hf_hub_filename": "evil.bin"},
    }
    for name, content in {
        "evil/x": trunk,
        "evil/text": {"model_type": "evil", "auto_map": AUTO_MAP},
    }.items():
        folder = repository(name)
        folder.mkdir(parents=True)
        to_json(folder / CONFIG, content)
        (folder / "evil.py").write_text(EVIL)
        (folder / "evil.bin").write_bytes(pickle.dumps(CALLS[0]))
    shutil.copytree(clip, repository("stranger/clip"))


def change(file: Path, place: tuple, keys: dict[str, Any]) -> None:
    """Give a JSON file other keys at a place."""
    to_json(file, replaced(of_json(file), place, lambda old: old | keys))


@st.composite
def strange(draw, tree: Any) -> Any:
    """A configuration with keys of the forms and values like theirs, at any places, or changed in
    any other way.
    """
    values = st.sampled_from(
        [*WORDS, *NAMES, *NUMBERS, True, AUTO_MAP, FAR_MAP, FOUR_BITS, PATHS, BACKBONE, None]
    )
    some = st.dictionaries(st.sampled_from(KEYS), values, max_size=2)
    known = st.sampled_from([keys for _, _, keys in FORMS.values()])
    places = [path for path in [(), TEXT, VISION, (*TEXT, "tokenizer_kwargs")] if holds(tree, path)]
    keys = draw(known) | draw(some)
    tree = replaced(tree, draw(st.sampled_from(places)), lambda old: old | keys)
    return draw(st.just(tree) | changed_tree(tree, values))


def holds(tree: Any, path: tuple) -> bool:
    for key in path:
        tree = tree.get(key, {})
    return bool(tree) or not path
