"""Runs on models that are not CLIP's: training, prediction, their tokeniser and preprocessing, and
wrong input.
"""

import pytest
import torch
from drawn import arguments, results, section_pairs
from marks import of_json, one_line, thorough_but
from tiny_models import FAMILIES, both, saved, small_timm, tiny_config, write_tokeniser

import clip
import trainers
from common.errors import UsageError
from inference import export
from inference.description import configuration
from inference.load import load
from trainers.base.method import Classes

pytestmark = pytest.mark.slow

TINY = {
    "PROMPT_DEPTH": 2,
    "CROSS_LAYER": 1,
    "ATTRIBUTES": ["color"],
    "N_ATT": 4,
    "PROMPT_DEPTH_VISION": 2,
    "PROMPT_DEPTH_TEXT": 2,
    "REP_LAYERS": [1, 2],
    "N_CTX": 4,
}
KNOWN = {
    "CoOp",
    "CoCoOp",
    "KgCoOp",
    "ProGrad",
    "TPT",
    "TaskRes",
    "TipAdapterF",
    "GDA",
    "TDA",
    "ZeroshotCLIP",
}
TINY |= {"ADAPTER_START": 1, "ADAPTER_END": 2}

# Published settings, which name 224 pixels, with the depth and the steps of tiny models.
FILES = {
    "CLIPLoRA": ("vit_b16", {"N_ITERS": 2}),
    "CoOp": ("vit_b16_ep50", {}),
    "MPL": ("vit_b4_c1_add2_rm1", {"PROMPT_DEPTH": 2}),
    "MaPLe": ("vit_b16_c2_ep5_batch4_2ctx", {"PROMPT_DEPTH": 2}),
    "VPT": ("vit_b16_c2_ep5_batch4_4", {"PROMPT_DEPTH_VISION": 2}),
}
PREPROCESS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}


@pytest.fixture
def trained(launch, eurosat, tmp_path):
    """`trained(FAMILY, METHOD, BACKBONE)`: how the run ended, in the folder `run`."""

    def trained(family, method, folder, *pairs):
        config, settings = FILES[method]
        pairs = (*section_pairs(method, settings), *pairs)
        argv = arguments(eurosat, folder, tmp_path / "run", *pairs, trainer=method, config=config)
        place = argv.index("INPUT.SIZE")
        with small_timm(tiny_config(FAMILIES[family])["vision_cfg"].get("timm_model_name")):
            return launch(*argv[:place], *argv[place + 2 :])

    return trained


PAIRS = [("EVA-02", "MPL"), ("PE-Core", "CLIPLoRA"), ("CoCa", "MaPLe"), ("MobileCLIP-S", "CoOp")]


@pytest.mark.parametrize("onnx", thorough_but(("",), ("", "--onnx")))
@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_a_run_and_its_predictions(family, method, onnx, trained, command, eurosat, tmp_path):
    folder = saved(family, tmp_path / "backbone", PREPROCESS)
    ended = trained(family, method, folder)
    assert ended.status == 0, ended
    assert "PIXEL_MEAN [0.5, 0.5, 0.5]" in ended.printed and "RESIZE_MODE squash" in ended.printed
    run = tmp_path / "run"
    out = tmp_path / "out"
    found = results(run)
    assert found["weights_sha256"] == clip.weights_sha256(str(folder))
    assert found["backbone"] == str(folder)
    with small_timm(tiny_config(FAMILIES[family])["vision_cfg"].get("timm_model_name")):
        model = load(run)
        command.works(export, run, "--to", out, "--backbone", folder, *onnx.split())
        exported = load(out, backbone=str(folder))
    images = [str(file) for file in sorted((eurosat / "eurosat/2750/0").glob("test*"))]
    torch.testing.assert_close(exported.logits(images), model.logits(images), rtol=0, atol=1e-4)
    config = of_json(out / "config.json")
    assert config["backbone_sha256"] == found["weights_sha256"] and config["tokeniser"] == "CLIP"
    assert config["input"]["RESIZE_MODE"] == "squash"
    assert config["input"]["SIZE"] == [*model.cfg.INPUT.SIZE]


def test_siglip_with_its_own_tokeniser(trained, command, eurosat, tmp_path):
    """Without SOS, bidirectional, read at the last token; attention pools the patches; a scale and
    a bias.
    """
    pytest.importorskip("transformers")
    folder = saved(
        "SigLIP", tmp_path / "backbone", hf_tokenizer_name="owner/words", tokenizer_kwargs={}
    )
    write_tokeniser(folder)
    with small_timm("siglip"):
        model = clip.load_backbone(str(folder))
    tokenizer = model.tokenizer
    row, _ = tokenizer(["X X red.", "a photo of a blue lake."]).tolist()
    assert tokenizer.start == 0 and tokenizer.name == "owner/words"
    assert row[:5] == [6, 6, 7, 5, 1] and set(row[5:]) == {1}
    assert tokenizer.length("blue lake") == 2 and tokenizer.word(7) == "red"
    assert model.logit_bias.item() == -10
    with pytest.raises(clip.ClipError, match="'red red .* positions"):
        tokenizer(["red " * 32])
    ended = trained("SigLIP", "MPL", folder, "OPTIM.MAX_EPOCH", 1)
    assert ended.status == 0, ended
    with small_timm("siglip"):
        command.works(export, tmp_path / "run", "--to", tmp_path / "out", "--backbone", folder)
    assert of_json(tmp_path / "out/config.json")["tokeniser"] == "owner/words"


def test_other_tokens_need_a_tokeniser(tmp_path):
    folder = saved("SigLIP", tmp_path / "backbone", hf_tokenizer_name="")
    with small_timm("siglip"), one_line("reads other tokens than CLIP's: choose a backbone whose"):
        clip.load_backbone(str(folder))


@pytest.mark.parametrize("family", ["EVA-02", "ConvNeXt", "MetaCLIP 2"])
def test_every_method_works_or_names_the_needed_backbone(family):
    _, model = both(FAMILIES[family])
    size = model.visual.image_size
    images = torch.zeros(2, 3, *(size if isinstance(size, tuple) else (size, size)))
    refused = set()
    for name, kind in trainers.methods().items():
        cfg = configuration(name)
        section = cfg.TRAINER[kind.section()]
        section.update({key: value for key, value in TINY.items() if key in section})
        cfg.MODEL.BACKBONE.NAME = "the backbone"
        names = ["river", "old tree", "lake"]
        needing = name in ("HiCroPL", "MMApp")
        sentences = {each: [f"a {each} here"] for each in names} if needing else {}
        method = kind(cfg, Classes(names, sentences=sentences), torch.device("cpu"))
        try:
            method.model = kind.Model(model, method.build_prompts(model, method.class_names))
            method.after_build()
        except UsageError as error:
            assert str(error).isprintable() and (
                "backbone" in str(error) or "sentences" in str(error)
            )
            refused |= {name.rpartition("+")[2]} if "backbone" in str(error) else set()
        else:
            assert method.model(images).shape == (2, 3), name
    # Methods that copy weights of CLIP's own layers may refuse others, too.
    vision = {
        "CLIPLoRA",
        "CoPrompt",
        "IVLP",
        "MMA",
        "MMRL",
        "MPL",
        "MaPLe",
        "PromptSRC",
        "UPT",
        "VPT",
    }
    # TCP needs nine text layers, and MMRLpp the projection of CLIP's class token.
    own = {"TCP"} if family == "MetaCLIP 2" else {"TCP", "MMRLpp"}
    needs_tokens = vision | {"LoCoOp"} if family == "ConvNeXt" else set()
    assert own | needs_tokens <= refused and not ((vision | KNOWN) - needs_tokens) & refused


@pytest.mark.parametrize(
    ("other", "words"), [("EVA-01", "visual.trunk"), ("CoCa", "positional_embedding has the shape")]
)
def test_weights_of_another_architecture_name_a_tensor(other, words, tmp_path):
    folder = saved("EVA-02", tmp_path / "one")
    weights = saved(other, tmp_path / "other") / "open_clip_model.safetensors"
    (folder / weights.name).write_bytes(weights.read_bytes())
    with small_timm("eva"), pytest.raises(clip.ClipError, match=words):
        clip.load_backbone(str(folder))
