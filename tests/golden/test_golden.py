"""Every method computes what the published implementation of it computes: a file of figures, its
method, and the forms of the towers that must give these figures.
"""

from dataclasses import replace

import learned_from_features as features
import learned_from_images as images
import marks
import pytest
import read_at_test_time as at_test
import read_together as together
import torch
from harness import Golden, agree, drawn
from marks import SECOND, case_of, golden_cases
from torch.nn.functional import normalize

import trainers.promptsrc
from datasets.noise import noisy_labels
from trainers.base.together import Task
from trainers.waffleclip import word_sequences

# `make check` runs these files, and those of figures that need no towers
QUICK = "mpl_add2_rm1", "zeroshot", "task_res", "mta", "promptsrc_gpa", "zero_votes"
ALL_TOWERS = "fast", "by row", "plain"
OF_VIEWS = "TPT", "CTPT", "OTPT"
# By method: the check, and the forms of the towers; other methods learn prompts
METHODS = {
    **dict.fromkeys(("TwoStage", "CLIPFit", "CLIPSVD"), (images.check_copies, ALL_TOWERS)),
    "NLPrompt": (images.check_nlprompt, ("fast", "plain")),
    "MMApp": (images.check_mmapp, ("fast", "plain")),
    "HiCroPL": (images.check_hicropl, ("fast", "plain")),
    "SkipTuning": (images.check_skip_tuning, ("fast", "plain")),
    "DPC": (images.check_dpc, ("fast", "plain")),
    "LoCoOp": (images.check_locoop, ("fast", "plain")),
    **dict.fromkeys(("CuPL", "DCLIP", "WaffleCLIP"), (at_test.check_texts, ("fast",))),
    **dict.fromkeys((*OF_VIEWS, "MTA", "TDA", "ZERO"), (at_test.check_views, ("fast", "plain"))),
    "TPS": (at_test.check_tps, ("fast",)),
    "DMN": (at_test.check_dmn, ("fast",)),
    "BoostAdapter": (at_test.check_boostadapter, ("fast",)),
    "TransCLIP": (together.check_transclip, ("fast",)),
    "StatA": (together.check_stata, ("fast",)),
    "EM-Dirichlet": (together.check_em_dirichlet, ("fast",)),
    "ZLaP": (together.check_zlap, ("fast",)),
    **dict.fromkeys(features.FORMS, (features.check_features, ("fast",))),
}
ELSEWHERE = {"NegLabel", "WiSE-FT"}  # test_neglabel.py, test_finetune.py
# By a key of the file: a further check
BY_KEY = {
    "mapped": images.check_mapped_prompts,
    "start_published": images.check_start,
    "whole_words": images.check_whole_words,
}


def checks_of(figures):
    """(check, forms of the towers) of a file's content."""
    if isinstance(figures, list):
        if "weights" in figures[0]:
            yield check_gaussian_average, ("fast",)
        return
    trainer = case_of(figures).get("trainer")
    if trainer and trainer not in ELSEWHERE:
        yield METHODS.get(trainer, (images.check_prompts, ALL_TOWERS))
        if trainer == "LoCoOp":
            yield images.check_prompts, ALL_TOWERS
    if trainer in OF_VIEWS:
        yield at_test.check_steps_of_tuning, ("fast", "plain")
    for key, check in BY_KEY.items():
        if key in figures:
            yield check, ("fast", "plain")
    if {"lr_by_epoch", "start_published"} <= figures.keys():
        yield images.check_rate_of_each_epoch, ("fast", "plain")
    if "template" in figures:
        yield images.check_zeroshot, ALL_TOWERS
    if "zero_votes" in figures:
        yield at_test.check_votes, ("fast",)


def check_gaussian_average(golden):
    for row in golden.figures:
        weights = trainers.promptsrc.gpa_weights(row["epochs"], row["mean"], row["std"])
        agree(weights, row["weights"], rel=1e-6, abs=1e-45)


def pytest_generate_tests(metafunc):
    golden_cases(metafunc, "noise")
    if "figures" not in metafunc.fixturenames:
        return
    cases = []
    folder = metafunc.config.getoption("golden")
    files = marks.golden_files(folder, lambda figures: any(checks_of(figures)))
    for stem, figures in files.items():
        for check, forms in checks_of(figures):
            for towers in forms:
                own = [pytest.mark.golden]
                if stem in SECOND or towers != "fast":
                    own.append(pytest.mark.thorough)
                elif not stem.startswith(QUICK):
                    own.append(pytest.mark.slow)
                name = f"{stem}-{check.__name__.removeprefix('check_')}-{towers}"
                cases.append(pytest.param(figures, check, towers, id=name, marks=own))
    metafunc.parametrize("figures, check, towers", cases)


def test_figures(figures, check, towers, backbones, stand_in, tmp_path, monkeypatch):
    """`by row`: towers read sequences one by one."""
    if "dataset" in case_of(figures):
        stand_in(figures["case"]["dataset"])
    if towers == "by row":
        monkeypatch.setattr("clip.layout.AT_ONCE", 0)
        towers = "fast"
    check(Golden(figures, towers, backbones, tmp_path, monkeypatch))


def test_noise_is_the_published_one(noise):
    arguments = noise["true_labels"], noise["classes"], noise["NOISE_RATE"], noise["NOISE_TYPE"]
    assert noisy_labels(*arguments, noise["python_seed"]) == noise["labels"]


@pytest.mark.slow
def test_the_classifier_of_two_stages_starts_and_learns_without_dropout(backbones, tmp_path):
    arch = {"image_resolution": 32, "patch_size": 16, "vision_layers": 1, "text_layers": 1}
    names = ["red", "green field", "blue lake"]
    settings = {"PEFT": "lora", "N_ITERS": 3, "FRACTION": 0.4}
    case = {"trainer": "TwoStage", "arch": arch, "classnames": names, "cfg": settings, "batch": 3}
    golden = Golden({"case": case, "labels": [0, 1, 2]}, "fast", backbones, tmp_path, None)
    optimizer = {"name": "adamw", "lr": 0.01, "max_epoch": 1}
    trainer = golden.build(optimizer=optimizer, train=1)
    trainer.method.schedule_steps = True
    trainer.model.prompt_learner.classifier.data.zero_()
    batch = golden.batch(golden.images(trainer))
    trainer.set_model_mode("train")
    trainer.forward_backward(batch)
    trainer.set_model_mode("eval")
    logits = trainer.model_inference(batch["img"])
    expected = torch.nn.functional.cross_entropy(logits, batch["label"])
    trainer.set_model_mode("train")
    agree(trainer.forward_backward(batch)["loss"], expected, abs=1e-3)


def test_the_mean_length_of_words_equals_numpy():
    # 5.5 without rounding errors
    lengths = [7, 6], [4], [3, 4, 4], [9], [8, 2, 2, 4], [9, 3, 8], [4, 5, 5]
    names = ["_".join("x" * length for length in words) for words in lengths]
    assert word_sequences(names, ["abcdefgh"], lambda words: words[0])() == "abcde abcde"


@pytest.mark.parametrize("inductive", ["dense", "sparse"])
def test_scaled_inductive_zlap_answers_each_image_alone(inductive):
    settings = {"K": 3, "SCALE_SIM": True, "INDUCTIVE": inductive}
    images = {"classes": 4, "dim": 16}
    method = at_test.method_of({"trainer": "ZLaP", "features": images, "cfg": settings})
    features = normalize(drawn(1, 30, 16) + 1, dim=1)
    texts = normalize(drawn(2, 4, 16) + 1, dim=1)
    task = Task.of(features, texts, support=(normalize(drawn(3, 20, 16) + 1, dim=1), None))
    every = method.predict_task(task)
    for place in (0, 7, 29):
        one = replace(task, features=features[place : place + 1])
        agree(method.predict_task(one)[0], every[place], abs=1e-5)
