"""The file of CLIP-LoRA's code: which ones are refused. `test_published_checkpoints.py` tests one that fits."""

import pytest
import torch

from common.start import ROOT

Shapes = dict[str, tuple[int, ...]]


def lora_shapes(widths: list[int], rank: int) -> Shapes:
    """The tensors of adapted blocks of these widths: text blocks first, then those of the image tower."""
    shapes: Shapes = {}
    for layer, width in enumerate(widths):
        for part in ("q_proj", "k_proj", "v_proj"):
            shapes[f"layer_{layer}.{part}.w_lora_A"] = (rank, width)
            shapes[f"layer_{layer}.{part}.w_lora_B"] = (width, rank)
    return shapes


def write_lora(folder, tensors: dict[str, torch.Tensor], **metadata) -> None:
    """Write `lora_weights.pt`, in fp32."""
    weights: dict = {}
    for name, tensor in tensors.items():
        layer, part, matrix = name.split(".")
        weights.setdefault(layer, {}).setdefault(part, {})[matrix] = tensor.float()
    settings = {"r": 2, "alpha": 1, "encoder": "both", "params": ["q", "k", "v"], "position": "all"}
    folder.mkdir(parents=True)
    torch.save({"weights": weights, "metadata": settings | metadata}, folder / "lora_weights.pt")


@pytest.fixture
def lora_refused(refused, eurosat, tiny, tmp_path):
    """`lora_refused(words)`: a test of the file in tmp_path/set, with published settings, is refused."""

    def lora_refused(*words):
        argv = ["--root", eurosat, "--backbone", tiny, "--trainer", "CLIPLoRA", "--output-dir", tmp_path / "out"]
        argv += ["--config-file", ROOT / "configs/trainers/CLIPLoRA/vit_b16.yaml", "--model-dir", tmp_path / "set"]
        argv += ["--dataset-config-file", ROOT / "configs/datasets/eurosat.yaml", "--eval-only"]
        argv += ["INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", 0, "DATASET.NUM_SHOTS", 1]
        refused(argv, *words)

    return lora_refused


def written(folder, layers=8, rank=2, **metadata):
    generator = torch.manual_seed(0)
    shapes = lora_shapes([64] * layers, rank)
    write_lora(folder / "set", {key: torch.randn(shapes[key], generator=generator) for key in shapes}, **metadata)


SETTINGS = {  # what a file says, and the refusal
    "rank": ({"r": 4}, "has r 4, and TRAINER.CLIPLORA.R is 2: give that TRAINER.CLIPLORA.R"),
    "encoder": ({"encoder": "text"}, "has encoder 'text', and TRAINER.CLIPLORA.ENCODER is both"),
    "position": ({"position": "up"}, "has position 'up', and TRAINER.CLIPLORA.POSITION is all"),
    "maps": ({"params": ["v", "q"]}, "has params ['q', 'v'], and TRAINER.CLIPLORA.PARAMS is ['q', 'k', 'v']"),
    "long": ({"alpha": "\n" * 99}, f"has alpha '{chr(92)}n", "and TRAINER.CLIPLORA.ALPHA is 1"),
}


@pytest.mark.parametrize("case", SETTINGS.values(), ids=SETTINGS)
def test_file_of_other_settings_is_refused(case, lora_refused, tmp_path):
    metadata, *words = case
    written(tmp_path, **metadata)
    lora_refused(f"{tmp_path}/set/lora_weights.pt has ", *words)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"layers": 4}, "has no layer_4.q_proj.w_lora_A"),
        ({"layers": 9}, "has prompts beyond these settings, such as layer_8"),
        ({"rank": 3}, "has shape (3, 64), expected is (2, 64)"),
    ],
    ids=str,
)
def test_file_with_other_layers_or_shapes_is_refused(shapes, words, lora_refused, tmp_path):
    written(tmp_path, **shapes)
    lora_refused(words)


@pytest.mark.parametrize("content", [{"weights": {}}, [1], {"metadata": 1, "weights": 2}], ids=str)
def test_another_file_is_refused(content, lora_refused, tmp_path):
    (tmp_path / "set").mkdir()
    torch.save(content, tmp_path / "set/lora_weights.pt")
    lora_refused(f"{tmp_path}/set/lora_weights.pt is not a LoRA file of CLIP-LoRA's code: check --model-dir")
