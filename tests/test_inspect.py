"""Looking inside a model: its figures beside a direct computation, what the command writes, and bad input."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from xml.etree import ElementTree

import pytest
import torch
from drawn import METHODS
from learned import OPTIONS
from marks import thorough_but
from PIL import Image

from clip import Edit, TextPrompts, load_backbone, plain, tokenize
from clip.random_weights import random_clip
from common.start import ROOT
from inference.classifier import PromptedClassifier
from inference.inspection import command as inspect_command
from inference.inspection.measures import Measures, attention_by_age, measure_tokens
from inference.inspection.tower import compared_roll_outs, origins, roll_out
from inference.inspection.words import nearest_words
from inference.models import open_models
from trainers.base.prompted import PromptedCLIP, PromptLearner

pytestmark = pytest.mark.slow

WITH_VISION_PROMPTS = {
    "MPL": ("N_CTX", 2, "N_ADD_OP", [2, 0, 3], "N_RM_OP", [1, 1, 0], "PROMPT_DEPTH", 4),
    "MaPLe": ("PROMPT_DEPTH", 9),
    "VPT": ("PROMPT_DEPTH_VISION", 3, "N_CTX_VISION", 3),
    "MMRL": (),
}


class Growing(PromptLearner):
    """A method of a user: prompts enter at layers 1, 2 and 5, and one of them leaves at layer 3."""

    def __init__(self, clip):
        super().__init__()
        width = clip.visual.class_embedding.shape[0]
        self.added = torch.nn.ParameterList(torch.randn(n, width) for n in (2, 1, 3))
        self.register_buffer("ids", tokenize(["red", "blue"], clip.context_length))

    def text(self, image_features):
        return TextPrompts(self.ids)

    def vision(self):
        first, second, last = self.added
        return [Edit(), Edit(add=first), Edit(add=second), Edit(1), Edit(), Edit(0, last)]


@pytest.fixture
def model_of(build, deep):
    def model_of(method):
        if method == "Growing":
            torch.manual_seed(0)
            return PromptedCLIP(load_backbone(str(deep)), Growing(load_backbone(str(deep))))
        return build(method, "base", *WITH_VISION_PROMPTS[method]).model

    return model_of


def watched(model, images):
    """The results of the plain tower: for each layer the labels of its tokens and the weights of its own attention.

    Labels are -2 for CLS, -1 for patches, and the layer that a prompt entered before; the tower's `edit` moves them.
    """
    visual, schedule = model.clip.visual, model.prompt_learner.vision()
    inputs, blocks = [], visual.transformer.resblocks
    hooks = [block.ln_1.register_forward_hook(lambda norm, x, output: inputs.append(output)) for block in blocks]
    plain.encode_image(model.clip, images, schedule)
    for hook in hooks:
        hook.remove()
    labels = torch.tensor([-2.0, *[-1.0] * (visual.positional_embedding.shape[0] - 1)])[None, :, None]
    found = []
    for layer, (block, x) in enumerate(zip(blocks, inputs, strict=True)):
        edit = schedule[layer] if layer < len(schedule) else Edit()
        add = None if edit.add is None else torch.full((edit.added, 1), float(layer))
        labels = plain.edit(labels, Edit(edit.remove, add), labels.shape[1])
        _, weights = block.attn(x, x, x, need_weights=True, average_attn_weights=False)
        found.append((labels[0, :, 0], weights))
    return found


OLDEST = {"MPL": 11, "MaPLe": 3, "VPT": 9, "MMRL": 0, "Growing": 10}  # age of a prompt in the last layer


@pytest.mark.parametrize("method", OLDEST)
@torch.no_grad()
def test_attention_by_age_and_roll_out_equal_a_direct_computation(method, model_of):
    """The roll-out from CLS of the last layer down; what reaches a prompt where it enters stays there."""
    model, images = model_of(method), torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected, found = watched(model, images), measure_tokens(model, images)
    for layer, (labels, weights) in enumerate(expected):
        tokens = found[found.layer == layer]
        assert tokens.age.tolist() == [int(label if label < 0 else layer - label) for label in labels]
        direct = weights[:, :, 0].mean(dim=1).sum(dim=0)
        torch.testing.assert_close(torch.tensor(tokens.share.to_numpy()).float(), direct, rtol=0, atol=1e-6)
    assert found.age.max() == OLDEST[method]

    row, prompts = torch.eye(expected[-1][1].shape[-1])[:1].repeat(3, 1), torch.zeros(3)
    for layer, (labels, weights) in reversed(list(enumerate(expected))):
        row = (torch.einsum("bt, bts -> bs", row, weights.mean(dim=1)) + row) / 2
        entering = labels == layer
        prompts += row[:, entering].sum(dim=1)
        row = row[:, ~entering]
        if layer:  # prompts that were removed reach nothing
            row = torch.nn.functional.pad(row, (0, len(expected[layer - 1][0]) - row.shape[1]))
    for number, shares in enumerate(roll_out(model.clip, images, model.prompt_learner.vision())):
        torch.testing.assert_close(torch.tensor(shares["patches"]).flatten(), row[number, 1:], rtol=0, atol=1e-6)
        assert shares["cls"] == pytest.approx(row[number, 0].item(), abs=1e-6)
        assert shares["prompts"] == pytest.approx(prompts[number].item(), abs=1e-6)


def test_origins_of_prompts():
    two = torch.zeros(2, 4)
    assert origins([Edit(add=two), Edit(1, two), Edit(), Edit(3)], 5) == [[0, 0], [0, 1, 1], [0, 1, 1], [], []]
    assert origins([Edit(), Edit(1, two)], 3, present=2) == [[0, 0], [0, 1, 1], [0, 1, 1]]


@torch.no_grad()
def test_carried_prompts_are_compared_with_themselves_on_entry(model_of):
    model, images = model_of("Growing"), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    inputs, visual = [], model.clip.visual
    x = plain.embed_image(visual, images)
    for layer, block in enumerate(visual.transformer.resblocks):
        inputs.append(plain.image_input(visual, x, model.prompt_learner.vision(), layer))
        x = block(inputs[-1])
    first, entry = inputs[6][:, 5:7], inputs[1][:, 5:7]  # CLS, four patches, then the two of layer 1
    cosine = torch.nn.functional.cosine_similarity(first, entry, dim=-1).mean().item()
    half = [measure_tokens(model, image[None]) for image in images]
    groups = attention_by_age(half, 2)[6]["groups"]
    assert list(groups) == ["CLS", "patches", "carried 1", "carried 5"]
    assert groups["carried 5"]["cosine_to_entry"] == pytest.approx(cosine, abs=1e-6)
    assert groups["carried 5"]["times_equal"] == pytest.approx(groups["carried 5"]["share"] * 10 / 2)


@pytest.mark.parametrize("changed", [False, True])
@torch.no_grad()
def test_a_changed_tower_is_not_shown_as_clip(changed, deep):
    """It was called "without prompts"."""
    classifier = PromptedClassifier.zero_shot(str(deep), ["red", "blue"])
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    if changed:
        classifier.clip.visual.transformer.resblocks[3].mlp.c_proj = torch.nn.Linear(256, 64).to(classifier.device)
    found = compared_roll_outs(classifier, images)
    assert list(found) == ["CLIP", "ZeroshotCLIP"][: 1 + changed]
    assert found["CLIP"] == roll_out(load_backbone(str(deep)), images, ())


# Words


@torch.no_grad()
def test_vectors_initialised_from_words_are_nearest_to_these(build):
    model = build("CoOp", "base", "CTX_INIT", "a photo of a").model
    rows = nearest_words(model.clip, model.prompt_learner.text(torch.zeros(1, 256)), ["x"] * 3, 2)
    assert [(row["layer"], row["class"], row["vector"]) for row in rows] == [(0, None, n) for n in range(4)]
    assert [row["nearest"][0][0] for row in rows] == ["a", "photo", "of", "a"]
    for row, vector in zip(rows, model.prompt_learner.ctx, strict=True):
        distances = (model.clip.token_embedding.weight - vector).norm(dim=1).sort().values[:2].tolist()
        assert [distance for _, distance in row["nearest"]] == pytest.approx(distances, abs=1e-5)


@torch.no_grad()
def test_vectors_of_a_class_and_of_an_image(build):
    zeros, names = torch.zeros(2, 256), ["red", "green field", "blue lake"]
    model = build("CoOp", "base", "CSC", True, "N_CTX", 2).model
    rows = nearest_words(model.clip, model.prompt_learner.text(zeros), names, 1)
    assert [(row["class"], row["vector"]) for row in rows] == [(name, n) for name in names for n in range(2)]
    model = build("TCP", "base").model
    rows = nearest_words(model.clip, model.prompt_learner.text(zeros), names, 1)
    later = [(8, name) for name in names for _ in range(4)]
    assert [(row["layer"], row["class"]) for row in rows] == [(0, None)] * 4 + later
    model = build("CoCoOp", "base", "N_CTX", 3).model
    text = model.prompt_learner.text(torch.eye(2, 256))
    rows = nearest_words(model.clip, text, names, 1)
    mean = text.ctx.mean(dim=(0, 1))
    assert [row["norm"] for row in rows] == pytest.approx(mean.norm(dim=-1).tolist(), abs=1e-6)


# The command


@pytest.fixture
def found(command, tmp_path):
    """`found(*arguments)` -> the content of inspect.json, and the folder, of a run of the command that must succeed."""

    def found(*arguments):
        output = tmp_path / f"inspected{len(list(tmp_path.iterdir()))}"
        done = command(inspect_command, *arguments, "--output", output)
        assert done.status == 0, done.errors
        assert done.printed.startswith("Written: inspect.html") and len(done.printed.splitlines()) == 1
        return json.loads((output / "inspect.json").read_text()), output

    return found


@pytest.fixture
def without_pictures(monkeypatch):
    """For tests of figures: the command takes a third of the time."""
    monkeypatch.setattr("inference.inspection.page.save", lambda figure, file: "")


def test_page_has_every_picture_and_loads_nothing(finished, found, photos):
    content, output = found(finished("MPL"), "--images", photos)
    names = ["schedule", "attention", "rollout"]
    files = {f"{name}.{kind}" for name in names for kind in ("png", "svg")} | {"inspect.html", "inspect.json"}
    assert {file.name for file in output.iterdir()} == files
    page = (output / "inspect.html").read_text()
    assert len(re.findall(r'<img src="data:image/svg\+xml;base64,', page)) == len(names) and "Not drawn" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "<script" not in page
    for name in names:
        assert Image.open(output / f"{name}.png").width > 300
        ElementTree.parse(output / f"{name}.svg")
    assert content["images"] == 5 and len(content["layers"]) == 12
    for layer, entered in zip(content["layers"], content["schedule"]["image"], strict=True):
        assert sum(group["share"] for group in layer["groups"].values()) == pytest.approx(1)
        assert sum(group["tokens"] for group in layer["groups"].values()) == layer["tokens"] == 5 + len(entered)
    new = sum(entered.count(layer) for layer, entered in enumerate(content["schedule"]["text"]))
    assert len(content["words"]) == new
    assert [list(row["shares"]) for row in content["rollout"]] == [["CLIP", "MPL"]] * 5
    for shares in (shares for row in content["rollout"] for shares in row["shares"].values()):
        assert sum(map(sum, shares["patches"])) + shares["prompts"] + shares["cls"] == pytest.approx(1, abs=1e-5)


QUICK = "VPT", "CoCoOp", "ZeroshotCLIP"
SMALLER = {"LoCoOp": ("TRAINER.LOCOOP.TOPK", 0.2)}


@pytest.mark.parametrize("method", thorough_but(QUICK, ("ZeroshotCLIP", *METHODS)))
def test_every_method_can_be_inspected(method, finished, found, photos, without_pictures):
    names = ["--classes", "red", "green field", "blue lake"]
    run = finished(method, "base", *SMALLER.get(method, ()))
    content, _ = found(run, "--images", photos / "a.jpg", "--topk", 2, *names)
    assert content["images"] == 1
    assert bool(content["layers"]) == ("image" in content["schedule"])
    assert bool(content["words"]) == ("text" in content["schedule"])
    changes = content["layers"] or method == "CLIPLoRA"  # in these few steps MMA changes less than 1 %
    assert list(content["rollout"][0]["shares"]) == (["CLIP", method] if changes else ["CLIP"])
    content, output = found(run, *names)
    assert (content["images"], content["layers"], content["rollout"]) == (0, [], [])
    assert "Not drawn: it needs images (--images)" in (output / "inspect.html").read_text()


def test_names_of_any_letters(finished, found, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "<script>$\\frac$\n\udcff.png")
    names = ["--classes", "<script>", "$x^$"]
    content, output = found(finished("VPT"), "--images", tmp_path / "<script>$\\frac$\n\udcff.png", *names)
    assert content["images"] == 1 and "\n" not in content["rollout"][0]["image"]
    assert "<script" not in (output / "inspect.html").read_text()


def test_a_resnet_has_no_attention(tmp_path, photos):
    vision = {"image_size": 32, "patch_size": None, "layers": [1, 1, 1, 1], "width": 8}
    torch.save(random_clip("RN50", vision, {"width": 64, "layers": 2}, 64).state_dict(), tmp_path / "rn.pt")
    options = Namespace(**vars(OPTIONS) | {"backbone": str(tmp_path / "rn.pt")})
    ((_, classifier),) = open_models([], options, ["red", "blue"])
    measures, pixels = Measures(classifier, None), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        measures.add(pixels)
        content = measures.summary(1, [photos / "a.jpg"], pixels)
    assert (content["layers"], content["rollout"], content["images"]) == ([], [], 1)


def test_unreadable_images_are_reported_and_skipped(finished, command, without_pictures, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_text("no image")
    os.mkfifo(tmp_path / "pipe.png")
    output = tmp_path / "output"
    done = command(inspect_command, finished("VPT"), "--images", tmp_path, "--output", output)
    assert (done.status, len(done.errors)) == (1, 2)
    assert all(line.startswith("skipped: ") for line in done.errors)
    assert json.loads((output / "inspect.json").read_text())["images"] == 1


WRONG = {
    "no model": (["{photos}"], "{photos} is not a model"),
    "no image at all": (["{run}", "--images", "{text}"], "none of the 1 images could be read"),
    "a full folder": (["{run}", "--output", "{photos}"], "{photos} is not empty"),
    "a file in its place": (["{run}", "--output", "{text}"], "{text} is not a folder"),
    "a file on its way": (["{run}", "--output", "{text}/a/b"], "cannot write to {text}/a/b (Not a directory)"),
    "no number of words": (["{run}", "--topk", "0"], "expected an integer >= 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_end_in_one_line_and_leave_nothing(name, finished, command, photos, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    places = {"photos": photos, "run": finished("CoOp"), "text": tmp_path / "text.jpg"}
    arguments, reason = WRONG[name]
    output = tmp_path / "output"
    done = command(inspect_command, "--output", output, *(argument.format(**places) for argument in arguments))
    assert done.status == 2 and done.errors[-1].partition("error: ")[2]
    assert reason.format(**places) in done.errors[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["text.jpg"]


def test_a_file_named_inspect_does_not_replace_pythons_module():
    """A program that is started in tools/ imports it, dataclasses too."""
    works = "assert inspect.signature(dataclasses.dataclass) and inspect.isclass(inspect.Parameter)"
    for imports in ("import inspect, dataclasses", "import dataclasses, inspect"):
        command = [sys.executable, "-S", "-c", f"{imports}; assert 'tools' in inspect.__file__; {works}"]
        done = subprocess.run(command, cwd=ROOT / "tools", capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
