"""The file of CLIP-LoRA's code: which ones are refused. `test_published_checkpoints.py` tests one
that fits.
"""

import pytest
import torch
from drawn import arguments, small_clip
from marks import one_line
from published_files import write_lora

from common.start import ROOT
from trainers.cliplora import CLIPLoRASettings, LoRALearner

Shapes = dict[str, tuple[int, ...]]


def lora_shapes(widths: list[int], rank: int) -> Shapes:
    """The tensors of adapted blocks of these widths: text blocks first, then those of the image
    tower.
    """
    shapes: Shapes = {}
    for layer, width in enumerate(widths):
        for part in ("q_proj", "k_proj", "v_proj"):
            shapes[f"layer_{layer}.{part}.w_lora_A"] = (rank, width)
            shapes[f"layer_{layer}.{part}.w_lora_B"] = (width, rank)
    return shapes


@pytest.fixture
def lora_refused(refused, eurosat, tiny, tmp_path):
    """`lora_refused(words)`: a test of the file in tmp_path/set, with published settings, is
    refused.
    """

    def lora_refused(*words):
        options = [
            "--config-file",
            ROOT / "configs/trainers/CLIPLoRA/vit_b16.yaml",
            "--trainer",
            "CLIPLoRA",
        ]
        options += ["--model-dir", tmp_path / "set", "--eval-only"]
        refused(arguments(eurosat, tiny, tmp_path / "out", options=options), *words)

    return lora_refused


REFUSED = {  # what a file has, and the refusal
    "rank": ({"r": 4}, "has r 4, and TRAINER.CLIPLORA.R is 2: give that TRAINER.CLIPLORA.R"),
    "encoder": ({"encoder": "text"}, "has encoder 'text', and TRAINER.CLIPLORA.ENCODER is both"),
    "maps": (
        {"params": ["v", "q"]},
        "has params ['q', 'v'], and TRAINER.CLIPLORA.PARAMS is ['q', 'k', 'v']",
    ),
    "more layers": ({"layers": 9}, "has prompts beyond these settings, such as layer_8"),
    "shapes": ({"rank": 3}, "has shape (3, 64), expected is (2, 64)"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_file_of_other_settings_layers_or_shapes_is_refused(case, lora_refused, tmp_path):
    given, *words = case
    metadata = {"layers": 8, "rank": 2} | given
    shapes = lora_shapes([64] * metadata.pop("layers"), metadata.pop("rank"))
    write_lora(
        tmp_path / "set", {key: torch.randn(shape) for key, shape in shapes.items()}, **metadata
    )
    lora_refused(f"{tmp_path}/set/lora_weights.pt has ", *words)


@pytest.mark.parametrize("content", [{"weights": {}}, [1], {"metadata": 1, "weights": 2}], ids=str)
def test_another_file_is_refused(content, lora_refused, tmp_path):
    (tmp_path / "set").mkdir()
    torch.save(content, tmp_path / "set/lora_weights.pt")
    lora_refused(
        f"{tmp_path}/set/lora_weights.pt is not a LoRA file of CLIP-LoRA's code: check --model-dir"
    )


@pytest.mark.parametrize(
    ("depth", "position", "layers"),
    [
        (12, "top3", range(9, 12)),
        (24, "half-up", range(12, 24)),
        (24, "half-bottom", range(12)),
        (4, "all", range(4)),
    ],
)
def test_adapted_layers(depth, position, layers):
    """`top3` has no meaning for the image tower, which has no adapters."""
    settings = CLIPLoRASettings(POSITION=position, ENCODER="text")
    learner = LoRALearner(small_clip({"layers": 13}, {"layers": depth}), ["red"], settings)
    assert [(tower, layer) for tower, layer, _ in learner.adapters] == [
        ("text", layer) for layer in layers
    ]
    if position != "all":
        with one_line("give half-up, half-bottom, all for 24 layers"):
            LoRALearner(small_clip({"layers": 2}, {"layers": 13}), ["red"], settings)
