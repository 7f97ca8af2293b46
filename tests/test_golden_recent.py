"""Recent methods whose steps are not those of one given batch compute what their published code
computes.

`--golden DIR` runs other figures of the same form. Tolerances are those of test_golden.py.
"""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn import arguments, cfg_from
from golden_inputs import drawn
from marks import case_of, golden, golden_cases, thorough_but, to_json
from test_golden import (
    AFTER,
    BEFORE,
    LOSSES,
    build,
    changes_of,
    close,
    for_classes,
    gradients_of,
    images_of,
    norms_of,
    shapes_of,
)
from torch.utils.data import DataLoader

import trainers.mmapp
import trainers.nlprompt
from configs.recipes import recipe
from datasets.noise import noisy_labels
from trainers.base.prompted import normalize

IGNORED = ("CURRICLUM_EPOCH", "BEGIN_RATE", "CURRICLUM_MODE")  # of budgets below 1


def pytest_generate_tests(metafunc):
    golden_cases(metafunc, "noise")
    golden(metafunc, "dpc", lambda figures: case_of(figures).get("trainer") == "DPC")
    golden(metafunc, "hicropl", lambda figures: case_of(figures).get("trainer") == "HiCroPL")
    golden(metafunc, "mmapp", lambda figures: case_of(figures).get("trainer") == "MMApp")
    golden(metafunc, "skipping", lambda figures: case_of(figures).get("trainer") == "SkipTuning")
    golden(metafunc, "nlprompt", lambda figures: case_of(figures).get("trainer") == "NLPrompt")
    golden(metafunc, "mapping", lambda figures: "mapped" in figures)
    golden(metafunc, "started", lambda figures: "start_published" in figures)
    golden(
        metafunc, "rates", lambda figures: "lr_by_epoch" in figures and "start_published" in figures
    )
    golden(metafunc, "whole", lambda figures: "whole_words" in figures)


def test_noise_is_the_published_one(noise):
    arguments = noise["true_labels"], noise["classes"], noise["NOISE_RATE"], noise["NOISE_TYPE"]
    assert noisy_labels(*arguments, noise["python_seed"]) == noise["labels"]


@pytest.fixture(params=thorough_but(("fast",), ("fast", "plain")))
def make(request, backbones, stand_in, tmp_path):
    """`make(figures, settings)` -> a trainer of the case."""

    def make(figures, settings, **options):
        case = figures["case"]
        stand_in(case["dataset"])
        name = f"{case['trainer']}+{case['base']}" if "base" in case else case["trainer"]
        arguments = name, request.param, settings, case["arch"], case["classnames"]
        return build(
            *arguments, figures["optimizer"], backbones, tmp_path, case["dataset"], **options
        )

    return make


def check_end(learned, start, figures):
    """The norms of the learned tensors, and of what was added to them."""
    assert norms_of(learned) == pytest.approx(figures["param_norms_after"], rel=1e-4)
    expected = pytest.approx(figures["param_change_norms"], rel=1e-3, abs=1e-4)
    assert changes_of(learned, start) == expected


def check_steps(trainer, batch, learned, start, figures):
    """Steps of one batch: losses, their parts, the first gradient, and the end."""
    steps = [trainer.forward_backward(batch)]
    assert gradients_of(learned) == pytest.approx(figures["grad_norms"], rel=1e-3, abs=1e-4)
    steps += [trainer.forward_backward(batch) for _ in figures["losses"][1:]]
    close([float(step["loss"]) for step in steps], figures["losses"], LOSSES)
    for step, expected in zip(steps, figures["loss_parts"], strict=True):
        close([float(step[f"loss_{part}"]) for part in expected], [*expected.values()], LOSSES)
    check_end(learned, start, figures)


class Given(torch.utils.data.Dataset):
    """Given images and labels, as Dassl's datasets return them."""

    def __init__(self, images, labels):
        self.images = images
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"img": self.images[index], "label": self.labels[index], "index": index}


def test_epochs_of_nlprompt(nlprompt, make, monkeypatch):
    case = nlprompt["case"]
    settings = {key: value for key, value in case["cfg"].items() if key not in IGNORED}
    plans = []
    transport = trainers.nlprompt.transport
    least = trainers.nlprompt.least_cost(len(case["classnames"])) / trainers.nlprompt.LOWEST
    if settings["REG_E"] < least:
        settings["UNDERFLOW"] = "published"

    def noted(*arguments):
        plans.append(transport(*arguments))
        return plans[-1]

    def in_order(loader, images, **options):
        return DataLoader(images, loader.batch_size, drop_last=options["drop_last"])

    monkeypatch.setattr(trainers.nlprompt, "transport", noted)
    monkeypatch.setattr(trainers.nlprompt, "loader_like", in_order)
    trainer = make(nlprompt, settings)
    learned = dict(trainer.model.named_parameters())
    assert shapes_of(learned) == nlprompt["trainable"]
    start = {name: parameter.detach().clone() for name, parameter in learned.items()}
    images = images_of(case["batch"], case["arch"]["image_resolution"])
    size = case["batch_size"]
    loader = DataLoader(Given(images, nlprompt["labels"]), size, drop_last=len(images) >= size)
    first = images[: len(nlprompt["logits_before"])].to(trainer.device)
    close(trainer.model_inference(first), nlprompt["logits_before"], BEFORE)
    losses = []
    steps = []
    for epoch in nlprompt["epochs"]:
        split = trainer.method.batches(loader)
        assert len(split) > 0
        clean = [index for index, agreed in enumerate(trainer.method.agreeing(loader)) if agreed]
        assert clean == epoch["clean"]
        plan = plans.pop()
        assert plan.argmax(dim=1).tolist() == epoch["pseudo_labels"]
        largest = max(np.max(epoch["coupling_first4"]), 1e-12)
        # Rounding of the logits is divided by REG_E
        close(plan[:4], epoch["coupling_first4"], 1e-6 / settings["REG_E"] * largest)
        for batch in split:
            losses.append(float(trainer.forward_backward(batch)["loss"]))
            steps.append(
                {"loss": "mae" if batch["wrong"] else "ce", "images": batch["index"].tolist()}
            )
            first_mae = nlprompt.get("grad_norm_of_first_mae_step") or {"step": None}
            for step, expected in ((0, nlprompt["grad_norms"]), (first_mae["step"], first_mae)):
                if len(steps) - 1 == step:
                    norms = {name: expected[name] for name in learned}
                    assert gradients_of(learned) == pytest.approx(norms, rel=1e-3)
    assert steps == nlprompt["steps"]
    close(losses, nlprompt["losses"], LOSSES)
    check_end(learned, start, nlprompt)
    close(trainer.model_inference(first), nlprompt["logits_after"], AFTER)


def check_both(trainer, images, figures, when, tolerance):
    """The logits of learned classes, and of new ones."""
    trainer.set_model_mode("eval")
    close(trainer.model_inference(images), figures[f"logits_{when}"], tolerance)
    other = for_classes(trainer, figures["case"]["new_classnames"])
    close(other.model_inference(images), figures[f"logits_new_{when}"], tolerance)
    trainer.set_model_mode("train")


def sentences_of(case, tmp_path):
    """Options that give the sentences of a case for its classes."""
    texts = case["sentences"]
    own = {name.replace("_", " ") for name in case["classnames"]}
    to_json(
        tmp_path / "sentences.json",
        {name: texts[name] for name in texts if name.replace("_", " ") in own},
    )
    return {"sentences": tmp_path / "sentences.json"}


def test_steps_of_mmapp(mmapp, make, tmp_path, monkeypatch):
    case = mmapp["case"]
    dropout = case.get("dropout", {"p": 0})
    given = sentences_of(case, tmp_path) if case["cfg"]["INPUT_PROMPTS"] == "cupl" else {}
    trainer = make(mmapp, case["cfg"] | {"ADAPTER_DROP": dropout["p"]}, **given)
    trainer.method.sentences = case.get("sentences", {})
    sentences = iter(case["sentence_of_step"])
    shares = iter(case["draw_of_step"])

    def dropped(x, p):
        kept = torch.arange(x.shape[-1], device=x.device) % dropout["zero_every"] != 0
        return x * kept / (1 - p)

    monkeypatch.setattr(trainers.mmapp, "draw_sentences", lambda *_: torch.tensor(next(sentences)))
    monkeypatch.setattr(trainers.mmapp, "draw_share", lambda: next(shares))
    monkeypatch.setattr(trainers.mmapp, "token_dropout", dropped)
    learned = dict(trainer.model.named_parameters())
    assert shapes_of(learned) == mmapp["trainable"]
    start = {name: parameter.detach().clone() for name, parameter in learned.items()}
    images = images_of(case["batch"], case["arch"]["image_resolution"]).to(trainer.device)
    batch = {"img": images, "label": torch.tensor(mmapp["labels"])}
    check_both(trainer, images, mmapp, "before", BEFORE)
    first = trainer.model.drawn + torch.tensor(case["sentence_of_step"][0])
    trainer.model.drawn = first
    close(trainer.model_inference(images), mmapp["logits_of_first_step"], BEFORE)
    check_steps(trainer, batch, learned, start, mmapp)
    check_both(trainer, images, mmapp, "after", AFTER)


def test_steps_of_hicropl(hicropl, make, tmp_path):
    case = hicropl["case"]
    trainer = make(hicropl, case["cfg"], **sentences_of(case, tmp_path))
    trainer.method.sentences = case["sentences"]
    learned = dict(trainer.model.named_parameters())
    idle = hicropl.get("in_optimizer_but_without_gradient", {})
    assert shapes_of(learned) == hicropl["trainable"] | idle
    kept = {name: learned[name].detach().clone() for name in idle}
    learned = {name: learned[name] for name in hicropl["trainable"]}
    start = {name: parameter.detach().clone() for name, parameter in learned.items()}
    images = images_of(case["batch"], case["arch"]["image_resolution"]).to(trainer.device)
    batch = {"img": images, "label": torch.tensor(hicropl["labels"])}
    check_both(trainer, images, hicropl, "before", BEFORE)
    with torch.no_grad():
        frozen = trainer.model.towers.encode_image(trainer.model.frozen, images).feature
        logits = trainer.model.logits(normalize(frozen), trainer.model.class_features)
    close(logits, hicropl["logits_zeroshot_sentences"], BEFORE)
    check_steps(trainer, batch, learned, start, hicropl)
    parameters = dict(trainer.model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in kept.items())
    check_both(trainer, images, hicropl, "after", AFTER)


def test_prompts_that_hicropl_maps_are_the_published_ones(mapping, make, tmp_path):
    """Published code stores them at each batch of a test, so that the next one has others."""
    case = mapping["case"]
    trainer = make(mapping, case["cfg"], **sentences_of(case, tmp_path))
    learner = trainer.model.prompt_learner
    images = images_of(case["batch"], case["arch"]["image_resolution"]).to(trainer.device)
    learner.stored = True
    trainer.set_model_mode("eval")
    seen = {1: "before", 2: "before_second_batch", 22: "before_batch_22"}
    for batch in range(1, 23):
        learner.store()
        if batch == 1:
            for name, expected in mapping["mapped"].items():
                prompts = trainer.model.get_parameter(name)
                assert prompts.norm().item() == pytest.approx(expected["norm"], rel=1e-5)
                close(prompts.flatten()[:4], expected["first4"], 1e-5)
        if batch in seen:
            close(trainer.model_inference(images), mapping[f"logits_{seen[batch]}"], BEFORE)


def test_steps_of_skip_tuning(skipping, make):
    case = skipping["case"]
    trainer = make(skipping, case["cfg"], by_recipe=False)
    method = trainer.method
    names = {saved: name for name, saved in trainer.model.prompt_learner.copies.items()}
    assert names.keys() <= set(skipping["checkpoint_names"])
    learned = {
        names[name]: value for name, value in trainer.model.prompt_learner.named_parameters()
    }
    assert shapes_of(learned) == skipping["trainable"]
    start = {name: parameter.detach().clone() for name, parameter in learned.items()}
    images = images_of(case["batch"], case["arch"]["image_resolution"]).to(trainer.device)
    x = trainer.model.lower_image(images)
    batch = {"img": x, "label": torch.tensor(skipping["labels"])}
    check_both(trainer, images, skipping, "before", BEFORE)
    torch.manual_seed(case["torch_seed"])
    torch.randperm(x.shape[1] - 1)  # of tokens that are dropped, none here
    classes = []
    counted = method.classes_of_step

    def noted(*arguments):
        classes.append(counted(*arguments))
        return classes[-1]

    method.classes_of_step = noted
    losses = []
    for step in range(len(skipping["losses"])):
        losses.append(float(trainer.forward_backward(batch)["loss"]))
        if step == 0:
            expected = pytest.approx(skipping["grad_norms"], rel=1e-3, abs=1e-5)
            assert gradients_of(learned) == expected
    assert [rows.tolist() for rows in classes] == skipping["classes_of_step"]
    if method.ranks is not None:
        assert method.ranks.int().tolist() == skipping["reserve_mask"]
    close(losses, skipping["losses"], LOSSES)
    assert norms_of(learned) == pytest.approx(skipping["param_norms_after"], rel=1e-4)
    moved = changes_of(learned, start)
    assert moved == pytest.approx(skipping["param_change_norms"], rel=3e-3, abs=1e-6)
    check_both(trainer, images, skipping, "after", AFTER)


def test_pairs_of_dpc(dpc, make):
    case = dpc["case"]
    trainer = make(dpc, case["cfg"] | case["base_cfg"])
    method = trainer.method
    learner = trainer.model.prompt_learner
    method.context_of_run = lambda: learner.ctx.detach()
    learner.backbone_ctx.copy_(learner.ctx)
    learned = dict(trainer.model.named_parameters())
    assert shapes_of(learned) == dpc["trainable"]
    start = {name: parameter.detach().clone() for name, parameter in learned.items()}
    size = case["arch"]["image_resolution"]
    images = images_of(case["batch"], size).to(trainer.device)
    shape = len(case["classnames"]), case["library_images"], 3, size, size
    library = drawn(case["library_seed"], *shape).flatten(0, 1)
    labels = [label for label in range(shape[0]) for _ in range(shape[1])]
    items = Given(library, labels)
    items.data_source = [SimpleNamespace(label=label) for label in labels]
    check_both(trainer, images, dpc, "before", BEFORE)
    method.batches(SimpleNamespace(dataset=items))
    batch = {"img": images, "label": torch.tensor(dpc["labels"])}
    losses = []
    for step, expected in enumerate(dpc["pair_labels"]):
        random.seed(case["python_seed"] + step)
        output, places = method.parse_batch_train(batch)
        assert trainer.model.rows[places].tolist() == expected
        random.seed(case["python_seed"] + step)
        losses.append(float(trainer.forward_backward(batch)["loss"]))
        if step == 0:
            assert gradients_of(learned) == pytest.approx(dpc["grad_norms"], rel=1e-3)
    close(losses, dpc["losses"], LOSSES)
    check_end(learned, start, dpc)
    check_both(trainer, images, dpc, "after", AFTER)


def options_of(case, tmp_path):
    return sentences_of(case, tmp_path) if "sentences" in case else {}


def test_start_is_the_published_one(started, make, tmp_path):
    case = started["case"]
    settings = case["cfg"] | case.get("base_cfg", {})
    trainer = make(started, settings, by_recipe=False, **options_of(case, tmp_path))
    method = trainer.method
    torch.manual_seed(started["start_published"]["torch_manual_seed"])
    learner = method.build_prompts(trainer.model.frozen, method.class_names)
    first = {
        f"{learner.name}.{name}": value.flatten()[:4].tolist()
        for name, value in learner.named_parameters()
    }
    expected = started["start_published"]["first4"]
    assert first.keys() == expected.keys()
    for name, numbers in expected.items():
        assert first[name] == pytest.approx(numbers, rel=1e-5, abs=1e-7), name


def test_learning_rate_of_each_epoch_is_the_published_one(rates, make, tmp_path):
    case = rates["case"]
    expected = rates["lr_by_epoch"]["lr"]
    options = options_of(case, tmp_path)
    method = make(rates, case["cfg"] | case.get("base_cfg", {}), **options).method
    given = ["OPTIM.MAX_EPOCH", len(expected), "OPTIM.LR", max(expected)]
    if options:
        given += ["DATASET.SENTENCES", options["sentences"]]
    name = type(method).__name__
    own = {"trainer": name, "config": recipe(name, "cross_dataset").cfg}
    backbone = method.cfg.MODEL.BACKBONE.NAME
    method.cfg = cfg_from(*arguments(tmp_path, backbone, tmp_path / "other", *given, **own))
    schedule = method.build_optimizer()[1]
    found = []
    for _ in expected:
        found += schedule.get_last_lr()
        schedule.step()
    assert found == pytest.approx(expected, rel=1e-6)


def test_whole_words_keep_all_tokens(whole, make):
    case = whole["case"]
    trainer = make(whole, case["cfg"] | case["base_cfg"] | {"WHOLE_WORDS": True})
    images = images_of(case["batch"], case["arch"]["image_resolution"]).to(trainer.device)
    check_both(trainer, images, {"case": case, **whole["whole_words"]}, "before", BEFORE)
    batch = {"img": images, "label": torch.tensor(whole["labels"])}
    loss = trainer.forward_backward(batch)["loss"]
    assert float(loss) == pytest.approx(whole["whole_words"]["first_loss"], abs=LOSSES)
