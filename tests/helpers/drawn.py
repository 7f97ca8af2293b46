"""Stand-ins for real data: images of one colour and noise in EuroSAT's layout, and the settings of
a run on them.
"""

import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import open_clip
import torch
from dassl.config import get_cfg_default
from marks import of_json, to_json
from PIL import Image

import trainers
from clip import tokenize
from clip.random_weights import random_tensor
from common.start import ROOT
from runs.arguments import parse_arguments
from runs.config import extend_cfg, setup_cfg
from trainers.base.feature_method import FeatureMethod


def write_eurosat(root: Path, classnames: list[str], train=2, val=1, test=2, size=32) -> Path:
    """Write `eurosat/2750/<label>/*.png` and the split file, which it returns; `train` may be a
    list, by label.
    """
    rng = np.random.default_rng(0)
    split = {"train": [], "val": [], "test": []}
    images = root / "eurosat/2750"
    for label, name in enumerate(classnames):
        (images / str(label)).mkdir(parents=True, exist_ok=True)
        colour = rng.integers(0, 256, 3)
        for part, count in (("train", train), ("val", val), ("test", test)):
            for number in range(count[label] if isinstance(count, list) else count):
                pixels = (
                    (colour + rng.integers(-40, 40, (size, size, 3))).clip(0, 255).astype(np.uint8)
                )
                path = f"{label}/{part}_{number}.png"
                Image.fromarray(pixels).save(images / path)
                split[part].append([path, label, name])
    for rows in split.values():
        random.Random(0).shuffle(rows)
    file = root / "eurosat/split_zhou_EuroSAT.json"
    to_json(file, split)
    return file


def class_folders(root: Path, place: Path, images: int) -> Path:
    """Copy this many images of each class of the drawn EuroSAT into folders below `place`."""
    for folder in (root / "eurosat/2750").iterdir():
        (place / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:images]:
            shutil.copy(file, place / folder.name)
    return place


def make_cfg(trainer: str, root: Path, backbone: Path, output: Path, *overrides):
    """A frozen configuration as train.py makes it, for a small backbone of 32 px."""
    cfg = get_cfg_default()
    extend_cfg(cfg)
    pairs = {
        "TRAINER.NAME": trainer,
        "DATASET.NAME": "EuroSAT",
        "DATASET.ROOT": str(root),
        "MODEL.BACKBONE.NAME": str(backbone),
        "OUTPUT_DIR": str(output),
        "INPUT.SIZE": (32, 32),
        "INPUT.TRANSFORMS": ("random_resized_crop", "random_flip", "normalize"),
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
        "OPTIM.NAME": "sgd",
        "SEED": 1,
    }
    split = root / "eurosat/split_zhou_EuroSAT.json"
    if trainer in ("HiCroPL", "MMApp") and "DATASET.SENTENCES" not in overrides:
        names = dict.fromkeys(name for *_, name in of_json(split)["train"])
        pairs["DATASET.SENTENCES"] = str(sentences_of(list(names), root))
    pairs |= dict(zip(overrides[::2], overrides[1::2], strict=True))
    cfg.merge_from_list([item for pair in pairs.items() for item in pair])
    cfg.freeze()
    return cfg


def cfg_from(*words):
    """The configuration of a run with these words of train.py."""
    return setup_cfg(parse_arguments([*map(str, words)]))


def section_pairs(method: str, settings: Mapping) -> list:
    """[TRAINER.<section>.KEY, value, ...] of a method's own settings."""
    section = trainers.methods()[method].section()
    return [item for key, value in settings.items() for item in (f"TRAINER.{section}.{key}", value)]


def arguments(
    root, backbone, output, *overrides, trainer="MPL", config="", options=()
) -> list[str]:
    """A command line of train.py for the published settings on a backbone of 32 px, 2 shots and 2
    epochs.

    `options` and `overrides` (KEY, VALUE, ...) come after those given here, and so replace them.
    `config` names another YAML file of the method.
    """
    configs = ROOT / "configs"
    yaml = {"MPL": "MPL/vit_b4_c1_add2_rm1.yaml", "ZeroshotCLIP": "CoOp/vit_b16.yaml"}.get(trainer)
    yaml = (
        f"{trainers.methods()[trainer].config_folder or trainer}/{config}.yaml" if config else yaml
    )
    argv = [
        "--root",
        root,
        "--backbone",
        backbone,
        "--output-dir",
        output,
        "--seed",
        1,
        "--trainer",
        trainer,
    ]
    argv += ["--dataset-config-file", configs / "datasets/eurosat.yaml"]
    argv += ["--config-file", configs / "trainers" / yaml, *options]
    return [str(argument) for argument in (*argv, *SMALL, *overrides)]


SMALL = ["INPUT.SIZE", "(32, 32)", "TRAINER.MPL.PROMPT_DEPTH", 3, "DATALOADER.NUM_WORKERS", 0]
SMALL += ["DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2]


def error_lines(stderr: str) -> list[str]:
    """The lines of stderr that are not progress bars."""
    return [
        line
        for line in stderr.splitlines()
        if line.strip() and not re.search(r"\|.*(it/s|s/it|B/s|batch/s)\]", line)
    ]


def clip_config(vision=(), text=(), quick_gelu=True) -> dict:
    """open_clip's arguments of a CLIP of 32 px, patch 16, two layers and width 64; arguments
    override these.
    """
    return {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2} | dict(vision),
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 64,
            "heads": 1,
            "layers": 2,
        }
        | dict(text),
        "quick_gelu": quick_gelu,
    }


def small_clip(vision=(), text=(), quick_gelu=True) -> open_clip.CLIP:
    """open_clip's own CLIP of these sizes with random weights, frozen; LayerNorm computes in the
    weights' type.
    """
    model = open_clip.CLIP(**clip_config(vision, text, quick_gelu))
    for key, parameter in model.named_parameters():
        parameter.data = random_tensor(key, tuple(parameter.shape))
    return model.eval().requires_grad_(False)


def features(model: open_clip.CLIP) -> torch.Tensor:
    """Features of two images and two texts from a CLIP of 32 px, (4, joint width), fp32."""
    images = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0))
    with torch.no_grad():
        image = model.encode_image(images)
        text = model.encode_text(tokenize(["a photo of a forest.", "a river"]))
    return torch.cat([image, text]).float()


def prompts_of(trainer) -> dict[str, torch.Tensor]:
    """A copy of what a trainer has learned, by its names in checkpoints."""
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


def prompts_in(folder: Path) -> dict[str, torch.Tensor]:
    """The learned tensors in the newest checkpoint of a run."""
    (pointer,) = folder.glob("*/checkpoint")
    return torch.load(pointer.with_name(pointer.read_text().strip()), weights_only=True)[
        "state_dict"
    ]


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not the same, bit for bit."""
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]


# Methods that learn in epochs over images and tell other classes, without plug-ins.
METHODS = tuple(
    name
    for name, method in trainers.methods().items()
    if method.learns
    and method.transfers
    and "+" not in name
    and not issubclass(method, FeatureMethod)
)
NEED_SENTENCES = {
    name for name, method in trainers.methods().items() if getattr(method, "needs_sentences", False)
}


def sentences_of(names, folder):
    """A file with sentences for all classes."""
    file = folder / "sentences.json"
    to_json(file, {name: [f"a {name} thing", "often wet"] for name in names})
    return file


ADAPTED = {
    "CLIPFit",
    "CLIPLoRA",
    "CLIPSVD",
    "FineTune",
    "MMApp",
    "SkipTuning",
    "MMA",
    "TwoStage",
}  # which learn inside the towers


def results(folder: Path) -> dict:
    """The content of results.json."""
    return of_json(folder / "results.json")


def run_for_real(launch, calls, monkeypatch):
    """Give the calls that a script would make to train.py in this process; returns the results of
    the runs.
    """
    monkeypatch.chdir(ROOT)
    for call in calls:
        launch.works(*call)
    return [results(Path(call[call.index("--output-dir") + 1])) for call in calls]


def card(name: str) -> list[float]:
    """Zero-shot accuracies (all, base, new) that the model card states for a set."""
    row = re.search(rf"^\| {name} \|(.*)\|$", (ROOT / "clip/small.md").read_text(), re.MULTILINE)
    return [float(cell) for cell in row[1].split("|")[-3:]]
