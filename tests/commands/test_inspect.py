"""Looking inside a model: its figures beside a direct computation, what the command writes, and bad
input.
"""

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import torch
from drawn import METHODS
from marks import of_json, thorough_but
from PIL import Image
from torch.nn.functional import cosine_similarity

from clip import Edit, load_backbone, plain
from clip.anatomy import embed_image
from common.start import ROOT
from inference.classifier import PromptedClassifier
from inference.inspection import command as inspect_command
from inference.inspection.measures import attention_by_age, measure_tokens, nearest_words
from inference.inspection.tower import compared_roll_outs, roll_out

pytestmark = pytest.mark.slow

WITH_VISION_PROMPTS = {
    "MPL": ("N_CTX", 2, "N_ADD_OP", [2, 0, 3], "N_RM_OP", [1, 1, 0], "PROMPT_DEPTH", 4),
    "MaPLe": ("PROMPT_DEPTH", 9),
    "VPT": ("PROMPT_DEPTH_VISION", 3, "N_CTX_VISION", 3),
    "MMRL": (),
    "MMRLpp": (),
}


def watched(model, images):
    """Of each layer of the plain tower: the labels of its tokens, the weights of its own attention,
    and two inputs.

    Labels are -2 for CLS, -1 for patches, and the layer that a prompt entered before; the tower's
    `edit` moves them. The second input has each prompt as it was when it entered.
    """
    found = []
    visual = model.clip.visual
    schedule = model.prompt_learner.vision()
    x = embed_image(visual, images)
    labels = torch.tensor([-2.0, *[-1.0] * (x.shape[1] - 1)])[None, :, None]
    first = x
    for layer, block in enumerate(visual.transformer.resblocks):
        edit = schedule[layer] if layer < len(schedule) else Edit()
        add = None if edit.add is None else torch.full((edit.added, 1), float(layer))
        first = plain.edit(first, edit, first.shape[1])
        labels = plain.edit(labels, Edit(edit.remove, add), labels.shape[1])
        x = plain.image_input(visual.ln_pre, x, schedule, layer)
        first = torch.where(labels == layer, x, first)
        normed = block.ln_1(x)
        _, weights = block.attn(
            normed, normed, normed, need_weights=True, average_attn_weights=False
        )
        found.append((labels[0, :, 0], weights, x, first))
        x = block(x)
    return found


# Age of a prompt in the last layer
OLDEST = {
    "MPL": 11,
    "MaPLe": 3,
    "VPT": 9,
    "MMRL": 0,
    "MMRLpp": 0,
}


@pytest.mark.parametrize("method", OLDEST)
@torch.no_grad()
def test_attention_by_age_and_roll_out_equal_a_direct_computation(method, build):
    """The roll-out from CLS of the last layer down; what reaches a prompt where it enters stays
    there.
    """
    model = build(method, "base", *WITH_VISION_PROMPTS[method]).model
    schedule = model.prompt_learner.vision()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = watched(model, images)
    found = [measure_tokens(model, image[None]) for image in images]
    for (layer, (labels, weights, x, first)), means in zip(
        enumerate(expected), attention_by_age(found, 3), strict=True
    ):
        ages = torch.where(labels < 0, labels, layer - labels)
        assert found[0][found[0].layer == layer].age.tolist() == ages.tolist()
        direct = weights[:, :, 0].mean(dim=(0, 1))
        cosine = cosine_similarity(x, first, dim=-1).mean(dim=0)
        assert means["tokens"] == len(ages) and len(means["groups"]) == len(ages.unique())
        for age, (name, group) in zip(ages.unique(), means["groups"].items(), strict=True):
            own = {"tokens": (ages == age).sum(), "share": direct[ages == age].sum()}
            own["times_equal"] = direct[ages == age].mean() * len(ages)
            if age > 0:
                own["cosine_to_entry"] = cosine[ages == age].mean()
            assert name == {-2: "CLS", -1: "patches", 0: "new"}.get(int(age), f"carried {age:.0f}")
            assert group == pytest.approx(
                {key: value.item() for key, value in own.items()}, abs=1e-5
            )
    assert found[0].age.max() == OLDEST[method]

    row = torch.eye(expected[-1][1].shape[-1])[:1].repeat(3, 1)
    prompts = torch.zeros(3)
    for layer, (labels, weights, *_) in reversed(list(enumerate(expected))):
        row = (torch.einsum("bt, bts -> bs", row, weights.mean(dim=1)) + row) / 2
        entering = labels == layer
        weight = schedule[layer].weight if layer < len(schedule) else 1.0
        # Of prompts that are mixed with those of the layer before
        before = (1 - weight) * row[:, entering]
        prompts += weight * row[:, entering].sum(dim=1)
        row = torch.cat([row[:, ~entering], before], dim=1) if weight < 1 else row[:, ~entering]
        if layer:  # prompts that were removed reach nothing
            row = torch.nn.functional.pad(row, (0, len(expected[layer - 1][0]) - row.shape[1]))
    for number, shares in enumerate(roll_out(model.clip, images, schedule)):
        torch.testing.assert_close(
            torch.tensor(shares["patches"]).flatten(), row[number, 1:], rtol=0, atol=1e-6
        )
        assert shares["cls"] == pytest.approx(row[number, 0].item(), abs=1e-6)
        assert shares["prompts"] == pytest.approx(prompts[number].item(), abs=1e-6)


@pytest.mark.parametrize("changed", [False, True])
@torch.no_grad()
def test_a_changed_tower_is_not_shown_as_clip(changed, deep):
    """It was called "without prompts"."""
    classifier = PromptedClassifier.zero_shot(str(deep), ["red", "blue"])
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    if changed:
        classifier.clip.visual.transformer.resblocks[3].mlp.c_proj = torch.nn.Linear(256, 64).to(
            classifier.device
        )
    found = compared_roll_outs(classifier, images)
    assert list(found) == ["CLIP", "ZeroshotCLIP"][: 1 + changed]
    assert found["CLIP"] == roll_out(load_backbone(str(deep)), images, ())


# Words


@torch.no_grad()
def test_vectors_initialised_from_words_are_nearest_to_these(build):
    model = build("CoOp", "base", "CTX_INIT", "a photo of unphoto").model
    rows = nearest_words(model.clip, model.prompt_learner.text(torch.zeros(1, 256)), ["x"] * 3, 2)
    places = [(row["layer"], row["class"], row["vector"]) for row in rows]
    assert places == [(0, None, n) for n in range(4)]
    # CoOp counts words, not tokens
    assert [row["nearest"][0][0] for row in rows] == ["a", "photo", "of", "un-"]
    for row, vector in zip(rows, model.prompt_learner.ctx, strict=True):
        distances = (model.clip.token_embedding.weight - vector).norm(dim=1).sort().values[:2]
        assert [distance for _, distance in row["nearest"]] == pytest.approx(
            distances.tolist(), abs=1e-5
        )


# The command


@pytest.fixture
def found(command, tmp_path):
    """`found(*arguments)` -> the content of inspect.json, and the folder, of a run of the command
    that must succeed.
    """

    def found(*arguments):
        output = tmp_path / f"inspected{len(list(tmp_path.iterdir()))}"
        (line,) = command.works(
            inspect_command, *arguments, "--output", output
        ).printed.splitlines()
        assert line.startswith("Written: inspect.html")
        return of_json(output / "inspect.json"), output

    return found


@pytest.fixture
def without_pictures(monkeypatch):
    """For tests of figures: the command takes a third of the time."""
    monkeypatch.setattr("inference.inspection.page.save_picture", lambda figure, file: "")


def test_page_has_every_picture_and_loads_nothing(finished, found, photos):
    content, output = found(finished("MPL"), "--images", photos / "a.jpg", photos / "below")
    names = ["schedule", "attention", "rollout"]
    files = {
        "inspect.html",
        "inspect.json",
        *(f"{name}.{kind}" for name in names for kind in ("png", "svg")),
    }
    assert {file.name for file in output.iterdir()} == files
    page = (output / "inspect.html").read_text()
    assert page.count('<img src="data:image/svg+xml;base64,') == 3 and "Not drawn" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "<script" not in page
    for name in names:
        assert Image.open(output / f"{name}.png").width > 300
        ElementTree.parse(output / f"{name}.svg")
    assert content["images"] == 2 and len(content["layers"]) == 12
    for layer, entered in zip(content["layers"], content["schedule"]["image"], strict=True):
        groups = layer["groups"].values()
        assert sum(group["share"] for group in groups) == pytest.approx(1)
        tokens = sum(group["tokens"] for group in groups)
        assert tokens == layer["tokens"] == 5 + len(entered)
    new = sum(entered.count(layer) for layer, entered in enumerate(content["schedule"]["text"]))
    assert len(content["words"]) == new
    assert [list(row["shares"]) for row in content["rollout"]] == [["CLIP", "MPL"]] * 2
    for shares in (shares for row in content["rollout"] for shares in row["shares"].values()):
        whole = sum(map(sum, shares["patches"])) + shares["prompts"] + shares["cls"]
        assert whole == pytest.approx(1, abs=1e-5)


QUICK = "VPT", "CoCoOp", "ZeroshotCLIP"
PLUGGED = "DePT+CoOp", "DePT+CoCoOp", "DePT+MPL"
SMALLER = {"LoCoOp": ("TRAINER.LOCOOP.TOPK", 0.2)}


@pytest.mark.parametrize("method", thorough_but(QUICK, ("ZeroshotCLIP", *METHODS, *PLUGGED)))
def test_every_method_can_be_inspected(method, finished, found, photos, without_pictures):
    names = ["--classes", "red", "green field", "blue lake"]
    run = finished(method, "base", *SMALLER.get(method, ()))
    content, _ = found(run, "--images", photos / "a.jpg", "--topk", 2, *names)
    assert content["images"] == 1
    assert bool(content["layers"]) == ("image" in content["schedule"])
    assert bool(content["words"]) == ("text" in content["schedule"])
    shares = list(content["rollout"][0]["shares"])
    # In these few steps MMA and TwoStage change about 1 %, from which on a change is shown
    if method not in ("MMA", "TwoStage"):
        changes = content["layers"] or method == "CLIPLoRA"
        assert shares == (["CLIP", method] if changes else ["CLIP"])
    assert shares[0] == "CLIP"
    content, output = found(run, *names)
    assert (content["images"], content["layers"], content["rollout"]) == (0, [], [])
    assert "Not drawn: it needs images (--images)" in (output / "inspect.html").read_text()


def test_a_file_named_inspect_does_not_replace_pythons_module():
    """A program that is started in tools/ imports it, dataclasses too."""
    works = "assert inspect.signature(dataclasses.dataclass) and inspect.isclass(inspect.Parameter)"
    for imports in ("import inspect, dataclasses", "import dataclasses, inspect"):
        code = f"{imports}; assert 'tools' in inspect.__file__; {works}"
        subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT / "tools", check=True)
