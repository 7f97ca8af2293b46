"""Backbones of timm without a text tower."""

import onnxruntime
import pytest
import timm
import torch
from marks import of_json, one_line, thorough_but, to_json
from PIL import Image
from safetensors.torch import save_file

import clip
from inference import export, predict
from inference.classifier import PromptedClassifier
from inference.load import load

pytestmark = pytest.mark.slow
MODELS = "test_resnet", "test_vit"  # tiny ones of timm, for images of 160 pixels


@pytest.fixture(scope="module", params=MODELS)
def backbone(request, tmp_path_factory):
    """A name with a file of random weights, a classifier among them."""
    return saved(request.param, tmp_path_factory.mktemp("timm"))


def saved(name, folder):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=7)
    save_file(model.state_dict(), folder / "weights.safetensors")
    return f"timm:{name}:{folder}/weights.safetensors"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three colours, five images each."""
    place = tmp_path_factory.mktemp("photos")
    for channel, name in enumerate(("red", "green", "blue")):
        (place / name).mkdir()
        for number in range(5):
            colour = [20 * number] * 3
            colour[channel] = 230
            Image.new("RGB", (40, 40), tuple(colour)).save(place / name / f"{number}.png")
    return place


def test_features_are_those_of_timm(backbone):
    _, name, file = backbone.split(":")
    ours = clip.load_backbone(backbone)
    theirs = timm.create_model(name, num_classes=7, checkpoint_path=file).eval()
    theirs.reset_classifier(0)
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(images), theirs(images))
        features = clip.encode_image(ours, images).feature
        torch.testing.assert_close(features, theirs(images), rtol=1e-4, atol=1e-4)
    assert ours.visual.output_dim == theirs(images).shape[1] and not clip.reads_texts(ours)
    stated = clip.preprocessing(backbone)
    data = timm.data.resolve_model_data_config(theirs)
    assert stated["SIZE"] == [160, 160] and stated["PIXEL_MEAN"] == data["mean"]
    with one_line("reads no class names"):
        PromptedClassifier.zero_shot(backbone, ["a", "b"])


@pytest.mark.parametrize("backbone", thorough_but(MODELS[:1], MODELS), indirect=True)
def test_a_fit_without_texts_is_exported_and_answers(backbone, command, fitting, photos, tmp_path):
    heads = "--methods", "VisionProbe", "KernelProbe"
    printed = fitting(photos, "--backbone", backbone, *heads).printed
    assert "; guessing " in printed and "ZeroshotCLIP" not in printed
    config = of_json(tmp_path / "model/config.json")
    assert config["backbone"] == f"{backbone.rpartition(':')[0]}:weights.safetensors"
    assert config["tokeniser"] == "none"
    image = photos / "red/3.png"
    done = command(predict, tmp_path / "model", image, "--backbone", backbone, "--csv")
    assert "red" in done.printed.splitlines()[1]
    assert "learned on the weight file" in command(predict, tmp_path / "model", image).error
    out = ["--to", tmp_path / "onnx", "--onnx", "--backbone", backbone]
    command.works(export, tmp_path / "model", *out)
    session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx")
    model = load(tmp_path / "model", backbone=backbone)
    assert model.method in ("KernelEnsemble", "KernelProbe")
    pixels = torch.randn(2, 3, *model.cfg.INPUT.SIZE)
    (logits,) = session.run(None, {"images": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model.logits(pixels), rtol=1e-3, atol=1e-3)


@pytest.mark.thorough
def test_texts_are_asked_of_a_clip_alone(command, fitting, photos, tiny, tmp_path):
    backbone = saved("test_resnet", tmp_path)
    line = photos, "--backbone", backbone
    words = f"LPPlusPlus needs texts, and {backbone} has no text tower"
    assert words in fitting(*line, "--methods", "LPPlusPlus").error
    to_json(tmp_path / "s.json", {"red": ["a red {}"]})
    assert "--sentences needs texts" in fitting(*line, "--sentences", tmp_path / "s.json").error
    printed = fitting(*line, tiny, "--methods", "LPPlusPlus", "VisionProbe").printed
    assert "guessing" in printed and "LPPlusPlus" in printed
    what = command(predict, "--backbone", backbone, photos / "red/3.png", "--classes", "a", "b")
    assert "has no text tower" in what.error


@pytest.mark.parametrize(
    "name, words",
    [
        ("timm:resnet1", "did you mean timm:resnet18?"),
        ("timm:test_resnet:none.pt", "none.pt cannot be read"),
        ("timm:test_vit:{file}", "does not have the weights of timm's test_vit"),
    ],
)
def test_an_unknown_backbone_prints_one_line(name, words, tmp_path):
    file = saved("test_resnet", tmp_path).rpartition(":")[2]
    with one_line(words):
        clip.load_backbone(name.format(file=file))
