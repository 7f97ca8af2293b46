"""Backbones by name and by file give the same model as OpenAI's package, or a one-line error."""

from collections import OrderedDict
from itertools import product

import open_clip
import pytest
import torch
from drawn import clip_config, differing, features, small_clip
from marks import golden, thorough_but, to_json
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import clip

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0))
TEXTS = clip.tokenize(["a photo of a forest.", "a river"])


@pytest.fixture(scope="module")
def source():
    return small_clip()  # with QuickGELU, as OpenAI's have it


# ---------------------------------------------------------------- the tokeniser


def pytest_generate_tests(metafunc):
    golden(metafunc, "cases", lambda content: isinstance(content, list) and "ids" in content[0])


def test_token_ids_equal_openais(cases):
    for case in cases:
        row = clip.tokenize(case["text"])[0].tolist()
        assert row == case["ids"] + [0] * (77 - len(case["ids"])), case["text"]


def test_tokenize_accepts_texts_any_context_length_and_quotes_or_truncates_too_long_ones():
    one = clip.tokenize("a cat")
    two = clip.tokenize(["a cat", "x"], context_length=9)
    assert one.shape == (1, 77) and two.shape == (2, 9)
    assert one.dtype == two.dtype == torch.int32  # OpenAI's since torch 1.8
    assert one[0, :9].tolist() == two[0].tolist()
    assert clip.tokenize([]).shape == (0, 77)
    with pytest.raises(clip.ClipError, match="'cat cat .* has 78 tokens.* 77 positions"):
        clip.tokenize("cat " * 76)
    full = clip.tokenize("cat " * 75)
    cut = clip.tokenize("cat " * 200, 77, True)
    assert torch.equal(full, cut) and cut[0, -1] == 49407


# ---------------------------------------------------------------- OpenAI's interface


@pytest.fixture(params=["file", "pair"])
def loaded(request, source, tmp_path, tiny_arch):
    path = tmp_path / "weights.pt"
    torch.save(source.state_dict(), path)
    return clip.load(
        str(path) if request.param == "file" else f"{tiny_arch}-quickgelu:{path}", device="cpu"
    )


def test_loaded_model_has_openais_interface(loaded, source):
    model, _ = loaded
    assert model.dtype == torch.float32 and not model.training
    assert (model.visual.input_resolution, model.context_length, model.vocab_size) == (
        32,
        77,
        49408,
    )
    assert not any(parameter.requires_grad for parameter in model.parameters())
    image = model.encode_image(IMAGES)
    text = model.encode_text(TEXTS)
    assert image.shape == text.shape == (2, 64) and not torch.allclose(
        image.norm(dim=-1), torch.ones(2)
    )
    per_image, per_text = model(IMAGES, TEXTS)
    image, text = (x / x.norm(dim=-1, keepdim=True) for x in (image, text))
    torch.testing.assert_close(per_image, model.logit_scale.exp() * image @ text.T)
    assert torch.equal(per_text, per_image.T)
    assert torch.equal(features(model), features(source))


def test_transform_resizes_crops_and_normalises_like_openais(loaded):
    _, preprocess = loaded
    image = Image.new("L", (64, 32), 0)
    image.paste(255, (16, 0, 48, 32))  # the centre is white, both sides are black
    mean = [0.48145466, 0.4578275, 0.40821073]
    std = [0.26862954, 0.26130258, 0.27577711]
    white = (1 - torch.tensor(mean)) / torch.tensor(std)
    pixels = preprocess(image)
    assert pixels.shape == (3, 32, 32)
    torch.testing.assert_close(pixels, white[:, None, None].expand(3, 32, 32))
    assert preprocess(Image.new("RGBA", (50, 333))).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ViT-B-17", "unknown backbone 'ViT-B-17'.*ViT-B-16"),
        ("vit-b/17", "vit-b/17 does not exist.*ViT-B/16"),
        ("ViT-B-16-SigLIPP", "unknown backbone.*ViT-B-16-SigLIP"),
        ("ViT-B-16-SigLIP", "architecture without weights.*ViT-B-16-SigLIP:webli"),
        (
            "ViT-B-16:laion2b_s34b",
            "no weights 'laion2b_s34b' for ViT-B-16.*ViT-B-16:laion2b_s34b_b88k",
        ),
        ("ViT-B-16:x", "no weights 'x' for ViT-B-16.*laion2b_s34b_b88k"),
        (
            "coca-ViT-B-33:laion2b_s13b_b90k",
            "no architecture 'coca-ViT-B-33'.*coca_ViT-B-32:laion2b",
        ),
        ("hf_hub:owner/name", "no architecture 'hf_hub'.*hf-hub:owner/name"),
        (
            f"ViT-B-32:{clip.weights.SMALL}",
            r"text_projection has the shape \(128, 128\), not \(512, 512\)",
        ),
        ("", "unknown backbone ''.*hf-hub"),
    ],
)
def test_load_rejects_jit_and_unknown_names(name, words):
    with pytest.raises(clip.ClipError, match="jit=False"):
        clip.load("ViT-B/16", jit=True)
    with pytest.raises(clip.ClipError, match=words):
        clip.load(name)


def test_an_image_size_fixed_by_timm_comes_before_open_clips():
    assert clip.preprocessing("ViTamin-XL-384:datacomp1b")["SIZE"] == [384, 384]
    assert clip.preprocessing("convnext_base_w_320:laion_aesthetic_s13b_b82k")["SIZE"] == [320, 320]


# ---------------------------------------------------------------- the forms of a file


def training_checkpoint(model, path):
    state = OrderedDict((f"module.{key}", value) for key, value in model.state_dict().items())
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, path)


FORMS = {
    "plain.pt": lambda model, path: torch.save(model.state_dict(), path),
    "legacy.pt": lambda model, path: torch.save(
        model.state_dict(), path, _use_new_zipfile_serialization=False
    ),
    "checkpoint.pt": training_checkpoint,
    "hub.safetensors": lambda model, path: save_file(model.state_dict(), path),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_file_form_gives_bit_identical_weights(form, source, tmp_path):
    FORMS[form](source, tmp_path / form)
    model = clip.load_backbone(str(tmp_path / form))
    assert differing(model.state_dict(), source.state_dict()) == []
    assert torch.equal(features(model), features(source))


def test_fp16_is_half_weights_with_layer_norm_in_fp32(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "plain.pt")
    model = clip.load_backbone(str(tmp_path / "plain.pt"), "fp16")
    for module in model.modules():
        halves = isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention)
        for parameter in (
            module.parameters(recurse=False) if halves or isinstance(module, nn.LayerNorm) else ()
        ):
            assert parameter.dtype == (torch.float16 if halves else torch.float32), module
    assert model.dtype == model.visual.proj.dtype == model.text_projection.dtype == torch.float16
    torch.testing.assert_close(features(model), features(source), rtol=0.02, atol=0.02)


@pytest.fixture(scope="module")
def tiny_arch(tmp_path_factory):
    """New architectures in open_clip's table with the sizes of `source`: this name, and others that
    begin with it.
    """
    folder = tmp_path_factory.mktemp("archs")
    swin = {
        "timm_model_name": "swin_tiny_patch4_window7_224",
        "timm_pool": "avg",
        "timm_proj": "linear",
    }
    others = {
        "": {"quick_gelu": False},
        "-quickgelu": {"quick_gelu": True},
        "-of-48": {"vision_cfg": clip_config()["vision_cfg"] | {"image_size": 48}},
        "-swin": {"vision_cfg": swin | {"image_size": 224, "timm_model_pretrained": True}},
    }
    for name, config in others.items():
        to_json(folder / f"ViT-tiny-32{name}.json", clip_config() | config)
    open_clip.add_model_config(folder)
    return "ViT-tiny-32"


def test_activation_follows_the_configuration(source, tiny_arch, tmp_path):
    path = tmp_path / "hub.safetensors"
    save_file(source.state_dict(), path)
    gelu = features(small_clip(quick_gelu=False))
    assert not torch.allclose(gelu, features(source), atol=1e-3)
    assert torch.equal(features(clip.load_backbone(f"{tiny_arch}:{path}")), gelu)
    assert torch.equal(
        features(clip.load_backbone(f"{tiny_arch}-quickgelu:{path}")), features(source)
    )

    config = clip_config() | {"quick_gelu": False}
    hub = {
        "model_cfg": config,
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    to_json(tmp_path / "open_clip_config.json", hub)
    model, preprocess = clip.load(str(path), "cpu")
    assert torch.equal(features(model), gelu)
    assert torch.equal(preprocess(Image.new("RGB", (40, 32))), torch.full((3, 32, 32), -2.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    thorough_but(
        (("", "fp32"), ("-of-48", "fp32"), ("-swin", "fp16")),  # resized; of timm
        [*product(("", "-of-48", "-swin"), ("fp32", "fp16"))],
    ),
    ids=str,
)
def test_open_clip_pair_equals_open_clips_own_model(case, source, tiny_arch, tmp_path):
    arch, precision = case
    path = str(tmp_path / "weights.pt")
    name = f"{tiny_arch}{arch}"
    own = source if arch != "-swin" else open_clip.create_model(name, load_weights=False)
    torch.save(own.state_dict(), path)
    expected = open_clip.create_model(name, path, precision=precision)
    model = clip.load_backbone(f"{name}:{path}", precision)
    assert type(model) is clip.CLIP and type(expected) is open_clip.CLIP
    assert model.visual.preprocess_cfg == expected.visual.preprocess_cfg
    assert (model.visual.image_mean, model.visual.image_std) == (
        expected.visual.image_mean,
        expected.visual.image_std,
    )
    found, own = (each.state_dict() | dict(each.named_buffers()) for each in (model, expected))
    assert differing(found, own) == [] and all(
        found[key].dtype == value.dtype for key, value in own.items()
    )
    if precision == "fp32" and not arch:
        assert torch.equal(features(model), features(expected.eval().requires_grad_(False)))


def test_a_backbone_first_loaded_in_inference_mode_can_train_later(tiny):
    with torch.inference_mode():
        model = clip.load_backbone(str(tiny))
    assert not any(parameter.is_inference() for parameter in model.parameters())
