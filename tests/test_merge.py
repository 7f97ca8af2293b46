"""Merged models: WiSE-FT's published numbers, and sums of what methods have learned."""

import shutil

import numpy as np
import pytest
import torch
from learned import images_of
from marks import case_of, golden, thorough_but
from test_golden import backbone_of
from test_golden import images_of as noise_of
from torch.nn.functional import normalize

from clip import load_backbone
from clip.random_weights import random_tensor
from common.errors import UsageError
from inference import models, peft_export
from inference.options import LoadOptions
from inference.seen import SeenImages
from runs import merge, merging

STEPS = {
    "CLIPLoRA": ("TRAINER.CLIPLORA.N_ITERS", 4, "TRAINER.CLIPLORA.PREC", "fp32"),
    "CLIPFit": ("TRAINER.CLIPFIT.PREC", "fp32"),
    "CoOp": (),
    "FineTune": ("TRAINER.FINETUNE.PREC", "fp32"),
    "TwoStage": ("TRAINER.TWOSTAGE.N_ITERS", 4, "TRAINER.TWOSTAGE.PREC", "fp32"),
    "ProLIP": ("TRAINER.PROLIP.STEPS", 4, "TRAINER.PROLIP.AUGMENT_EPOCH", 2),
}


def pytest_generate_tests(metafunc):
    golden(metafunc, "figures", lambda figures: case_of(figures).get("trainer") == "WiSE-FT")


def test_golden_interpolation(figures, backbones):
    case = figures["case"]
    clip = load_backbone(str(backbone_of(case["arch"], backbones)))
    names = [name.replace("_", " ") for name in case["classnames"]]
    both = case["interpolated"] == "both towers"
    images = noise_of(case["batch"], case["arch"]["image_resolution"])

    @torch.no_grad()
    def texts():
        found = [
            clip.encode_text(clip.tokenizer([text.format(name) for name in names]).long(), True)
            for text in case["templates"]
        ]
        return normalize(torch.stack(found).mean(dim=0), dim=1)

    start = {
        key: value.clone()
        for key, value in clip.state_dict().items()
        if key != "logit_scale" and (both or key.startswith("visual."))
    }
    scale = clip.logit_scale.exp()
    if not both:
        start |= {"weight": scale * texts(), "bias": torch.zeros(len(names))}
    factors = {"weight": "classification_head.weight", "bias": "classification_head.bias"}
    tuned = {}
    for key, value in start.items():
        factor = case["head_delta_scale" if key in factors else "delta_scale"]
        change = random_tensor(f"{factors.get(key, key)}.delta", tuple(value.shape))
        tuned[key] = value + factor * change
    for point in figures["points"]:
        state = merging.weighted([(point["alpha"], tuned)], start)
        clip.load_state_dict(state, strict=False)
        with torch.no_grad():
            features = clip.encode_image(images, True)
            weight = scale * texts() if both else state["weight"]
            logits = features @ weight.T + (0 if both else state["bias"])
        torch.testing.assert_close(logits, torch.tensor(point["logits"]), rtol=0, atol=1e-4)


@pytest.fixture(scope="session")
def clip_file(backbones):
    """A backbone of seven blocks: more than each part of the tower that CLIPLoRA names."""
    return backbones(32, 16, 7, 7, 64, 64, 64)


@pytest.fixture
def load(clip_file):
    return lambda path: models.load(path, LoadOptions(backbone=str(clip_file)))


@pytest.fixture
def learned(load):
    return lambda path: load(path)._own.saved_module().state_dict()


@pytest.fixture
def runs(finished, clip_file):
    """`runs(METHOD, 2)`: finished runs with other seeds."""
    return lambda method, number=2: [
        finished(method, "base", *STEPS[method], "SEED", seed, backbone=clip_file)
        for seed in range(1, number + 1)
    ]


@pytest.fixture
def merged(command, clip_file, tmp_path):
    """`merged(how, *models, OPTION, ...)`: the folder of a merged model, and what was printed."""

    def merged(how, *models, options=()):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        done = command.works(
            merge, *models, "--to", folder, "--how", how, "--backbone", clip_file, *options
        )
        return folder, done.printed

    return merged


def images_in_folders(place, root, names, part):
    """Images of this part of the split of EuroSAT, in folders with the names of classes."""
    for number, name in enumerate(names):
        (place / name).mkdir(parents=True, exist_ok=True)
        for file in (root / f"eurosat/2750/{number}").glob(f"{part}_*"):
            shutil.copy(file, place / name)
    return place


def products(classifier):
    """The change of each map."""
    learned = classifier._own.model.prompt_learner.extra_modules.values()
    return torch.stack(
        [lora.scale * part.w_lora_B @ part.w_lora_A for lora in learned for part in lora.children()]
    )


def test_low_rank_maps_and_an_adapter_of_peft_are_merged_by_their_products(
    runs, merged, load, tmp_path
):
    paths = runs("CLIPLoRA")
    first, second = (products(load(path)) for path in paths)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    peft_export.write(load(paths[1]), adapter, "transformers")
    mean, _ = merged("mean", paths[0], adapter)
    found = load(mean)
    assert found._own.settings.R == 4 and found.description.training["merge"] == "mean"
    half, _ = merged("wise-ft:0.5", paths[0])
    task, _ = merged("task:0.7", *paths)
    again, _ = merged("mean", mean, paths[0])  # other ranks
    for folder, expected in (
        (mean, (first + second) / 2),
        (half, first / 2),
        (task, 0.7 * (first + second)),
        (again, (3 * first + second) / 4),
    ):
        assert torch.allclose(products(load(folder)), expected, atol=1e-6)


@pytest.mark.parametrize(
    "method", thorough_but(("FineTune",), ("CoOp", "CLIPFit", "FineTune", "ProLIP"))
)
def test_the_mean_of_learned_tensors(method, runs, merged, learned):
    paths = runs(method)
    first, second = map(learned, paths)
    found = learned(merged("mean", *paths)[0])
    assert any(not torch.equal(first[key], second[key]) for key in first)
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, (first[key] + second[key]) / 2)


@pytest.mark.thorough
def test_changes_from_clip_are_scaled_or_joined(runs, merged, load, learned, eurosat):
    paths = runs("CLIPFit")
    first, second = map(learned, paths)
    start = {
        key: tensor.clone()
        for key, tensor in load(paths[0]).start().saved_module().state_dict().items()
    }
    quarter = learned(merged("wise-ft:0.25", paths[0])[0])
    task = learned(merged("task:1", *paths)[0])
    ties = learned(merged("ties:1", *paths)[0])
    dare = learned(merged("dare:0", *paths)[0])
    for key, zero in start.items():
        torch.testing.assert_close(quarter[key], 0.75 * zero + 0.25 * first[key])
        torch.testing.assert_close(task[key], first[key] + second[key] - zero)
        torch.testing.assert_close(dare[key], (first[key] + second[key]) / 2)
        changes = torch.stack([first[key] - zero, second[key] - zero])
        agrees = (changes.sign() * changes.sum(dim=0).sign() > 0).float()
        mean = (changes * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)
        torch.testing.assert_close(ties[key], zero + mean, rtol=1e-5, atol=1e-6)
    # The whole of CLIP: with a share of 0 the model is zero-shot CLIP
    images = list(images_of(eurosat, range(6)))
    none = load(merged("wise-ft:0", paths[0])[0])
    expected = none.start().model.image_features(none.pixels(images))
    torch.testing.assert_close(none.model_for().image_features(none.pixels(images)), expected)


@pytest.mark.parametrize(
    "how", thorough_but(("wise-ft:0.5",), ("wise-ft:0.5", "task:0.3", "ties", "dare"))
)
def test_the_scale_of_the_logits_is_averaged(how, runs, merged, learned):
    paths = runs("FineTune", 1 if how == "wise-ft:0.5" else 2)
    scales = [learned(path)["log_scale"] for path in paths]
    found = learned(merged(how, *paths)[0])["log_scale"]
    assert found.item() == pytest.approx(torch.stack(scales).mean().item(), abs=1e-6)


def test_the_steps_of_a_batch_norm_may_differ():
    states = [{"norm.num_batches_tracked": torch.tensor(steps)} for steps in (3, 5, 4)]
    merged = merging.weighted([(1 / 3, state) for state in states])
    assert merged["norm.num_batches_tracked"] == 5
    states[1]["other"] = states[0]["other"] = torch.tensor(1)
    states[2]["other"] = torch.tensor(2)
    with pytest.raises(UsageError, match="the models differ in other"):
        merging.weighted([(1 / 3, state) for state in states])


def test_ties_keeps_the_largest_entries_and_dare_drops_by_seed():
    start = {"a": torch.zeros(4), "b": torch.zeros(6)}
    state = {"a": torch.tensor([5.0, -1, 0.5, 4]), "b": torch.tensor([1.0, 9, -8, 0, 2, 3])}
    kept = dict(merging.trimmed(state, start, 0.4))
    assert kept["a"].tolist() == [5, 0, 0, 4] and kept["b"].tolist() == [0, 9, -8, 0, 0, 0]
    large = {"a": torch.ones(10_000)}
    draws = [
        merging.dropped(large, {"a": torch.zeros(10_000)}, 0.9, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0]["a"], draws[1]["a"]) and not torch.equal(
        draws[0]["a"], draws[2]["a"]
    )
    assert sorted(set(draws[0]["a"].tolist())) == [0, pytest.approx(10)]
    assert 0.08 < (draws[0]["a"] > 0).float().mean() < 0.12


def test_a_greedy_soup_is_chosen_on_validation_images(runs, merged, load, monkeypatch):
    paths = runs("CLIPLoRA", 3)
    accuracies = iter([50, 70, 60, 65, 80])  # alone; the second with the third, then with the first
    monkeypatch.setattr(merge.Judge, "accuracy", lambda *given: next(accuracies))
    folder, printed = merged("greedy", *paths)
    training = load(folder).description.training
    assert training["chosen"] == [paths[1].name, paths[0].name]
    assert training["validation_accuracy"] == 80 and training["validation_images"] == 6
    second, first = (products(load(path)) for path in (paths[1], paths[0]))
    assert torch.allclose(products(load(folder)), (first + second) / 2, atol=1e-7)
    assert f"60.0%  {paths[2]}: left out" in printed
    seen = SeenImages.read(folder)
    rows = [SeenImages.read(path).of_role("learned").digest for path in paths]
    images = len({row.tobytes() for row in np.concatenate(rows)})
    assert len(seen.of_role("chosen")) == 6 and len(seen.of_role("learned")) == images


@pytest.mark.thorough
def test_the_share_of_wise_ft_is_chosen_on_validation_images(runs, merged, load, learned):
    (path,) = runs("CLIPFit", 1)
    folder, printed = merged("wise-ft", path)
    training = load(folder).description.training
    best = float(training["merge"].removeprefix("wise-ft:"))
    rows = [line.split() for line in printed.splitlines() if "%  wise-ft:" in line]
    accuracies = {float(name[8:]): float(value[:-1]) for value, name in rows}
    assert len(accuracies) == 11 and accuracies[best] == max(accuracies.values())
    state = learned(folder)
    start = load(path).start().saved_module().state_dict()
    for key, tensor in learned(path).items():
        torch.testing.assert_close(state[key], (1 - best) * start[key] + best * tensor)


def test_what_was_chosen_on_test_images_or_changed_is_no_start(
    runs, command, launch, argv, clip_file, eurosat, tmp_path
):
    paths = runs("CLIPFit")
    names = models.load(paths[0]).class_names
    test = images_in_folders(tmp_path / "test", eurosat, names, "test")
    options = "--images", test, "--accept-test-images"
    soup = tmp_path / "soup"
    command.works(merge, *paths, "--to", soup, "--how", "greedy", *options)
    mean = tmp_path / "mean"
    command.works(merge, *paths, "--to", mean)
    file = mean / "prompts.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 64
    file.write_bytes(content)
    cases = {soup: "was chosen on test images", mean: "its SHA-256 differs"}
    for folder, words in cases.items():
        line = "CLIPFit", *STEPS["CLIPFit"]
        use = ["--eval-only", "--model-dir", folder]
        start = "MODEL.INIT_WEIGHTS", folder / file.name
        assert words in launch(*argv(*line, backbone=clip_file, options=use)).error
        assert words in launch(*argv(*line, *start, backbone=clip_file, output="begun")).error


def test_what_cannot_be_merged_is_one_line(
    runs, finished, command, load, eurosat, tmp_path, clip_file
):
    def refused(words, how, *models):
        error = command(merge, *models, "--to", tmp_path / "out", "--how", how).error
        assert words in error and list(tmp_path.iterdir()) == []

    lora, other = runs("CLIPLoRA")
    (coop,) = runs("CoOp", 1)
    (two_stage,) = runs("TwoStage", 1)
    options = STEPS["CLIPLoRA"]
    new = finished("CLIPLoRA", "new", *options, backbone=clip_file)
    narrow = finished(
        "CLIPLoRA", "base", *options, "TRAINER.CLIPLORA.PARAMS", "['q']", backbone=clip_file
    )
    adapter = tmp_path.parent / "adapter"
    adapter.mkdir(exist_ok=True)
    peft_export.write(load(lora), adapter, "transformers")
    refused("are the same model", "mean", lora, lora)
    refused("are of CLIPLoRA and CoOp", "mean", lora, coop)
    refused("two models or more", "mean", lora)
    refused("is for one model", "wise-ft:0.5", lora, other)
    refused("1.5 is not from 0 to 1", "wise-ft:1.5", lora)
    refused("is not one of mean, greedy", "soup", lora, other)
    refused("'half' is not a number", "wise-ft:half", lora)
    refused("expected 0 to 4294967295", "dare", lora, other, "--seed", 2**70)
    refused("--images has no use here", "mean", lora, other, "--images", tmp_path)
    refused("--how ties is for the entries of weights", "ties:0.2", lora, other)
    refused("CoOp does not start from CLIP's weights", "wise-ft:0.5", coop)
    refused("is an adapter of PEFT, which names no classes", "mean", adapter, lora)
    refused("TwoStage has a classifier", "wise-ft:0.5", two_stage)
    refused("have other classes", "mean", lora, new)
    refused("have PARAMS ['q', 'k', 'v'] and ['q']", "mean", lora, narrow)
    names = load(lora).class_names
    for source, words in (("test", "are test images"), ("train", "are training images")):
        images = images_in_folders(tmp_path.parent / source, eurosat, names, source)
        refused(words, "greedy", lora, other, "--images", images)
