"""Methods that read sentences, or views of one test image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import section_pairs
from harness import (
    BEFORE,
    Golden,
    drawn,
    drawn_features,
    image_features,
    settings_of,
)
from marks import to_json
from torch.nn.functional import normalize

import trainers
from clip.random_weights import random_clip, random_tensor
from inference.description import configuration
from trainers.base.method import Classes
from trainers.base.test_time import entropies, most_confident
from trainers.dmn import by_class
from trainers.mta import bandwidths, mean_shift
from trainers.zero import votes

# Sentences


def check_texts(golden: Golden):
    """What CuPL, DCLIP and WaffleCLIP read, and the logits."""
    case = golden.case
    figures = golden.figures
    words = golden.tmp_path / "words.txt"
    words.write_text("\n".join(case.get("words", [])))
    given = golden.tmp_path / "sentences.json"
    to_json(given, case.get("descriptors") or figures["sentences"])
    settings = settings_of_method(case["trainer"], case["cfg"] | {"WORDS": str(words)})
    for run in figures.get("runs", [figures]):
        options = {"DATASET.SENTENCES": str(given), "SEED": run.get("seed", 1)}
        trainer = golden.build(settings, options=options, train=1, test=1)
        trainer.set_model_mode("eval")
        images = golden.images(trainer)

        def logits(trainer=trainer, images=images, **changed):
            trainer.method.settings = replace(trainer.method.settings, **changed)
            trainer.method.after_build()
            return trainer.model_inference(images)

        if case["trainer"] != "CuPL":
            texts = zip(trainer.dm.dataset.classnames, trainer.method.texts(), strict=True)
            golden.same("sentences", dict(texts), run)
        texts = trainer.model.class_texts
        golden.same("text_norms", lambda texts=texts: texts.norm(dim=1), run, abs=1e-5)
        golden.same("logits_before", trainer.model_inference(images), run)
        for key, how in {"logits_merged": "unit", "logits_max": "max"}.items():
            if key in run:
                golden.same(key, logits(AGGREGATE=how), run, abs=BEFORE)
    if case["trainer"] == "CuPL":  # its code keeps `_` in the class names of templates
        golden.same("text_first8", trainer.model.class_texts[:, :8])
        of_templates = logits(TEMPLATES=case["templates"])
        golden.same("logits_with_templates", of_templates, abs=BEFORE)
        golden.same("text_first8_with_templates", trainer.model.class_texts[:, :8], abs=1e-5)
    if case["trainer"] == "DCLIP":
        template = f"{case['cfg']['LABEL_BEFORE']}{{}}{case['cfg']['AFTER']}"
        plain = golden.of(figures | {"case": case | {"trainer": "ZeroshotCLIP"}})
        plain = plain.build({"TEMPLATE": template}, train=1, test=1)
        plain.set_model_mode("eval")
        golden.same("logits_zeroshot", plain.model_inference(images))


def settings_of_method(name, values):
    """Those values that the method has as settings."""
    known = trainers.methods()[name].Settings.schema()
    return {key: value for key, value in values.items() if key in known}


# Views of one image


def trainer_of_views(golden):
    case = golden.case
    settings = settings_of(case["cfg"])
    if "templates" in case:
        settings["TEMPLATES"] = case["templates"]
    trainer = golden.build(settings, {})
    for name, shape in golden.figures["trainable"].items():
        if case["ctx"] == "drawn":
            trainer.model.get_buffer(name).copy_(random_tensor(name, tuple(shape)))
    trainer.set_model_mode("eval")
    size = case["arch"]["image_resolution"]
    return trainer, drawn(9, case["images"], case["views"], 3, size, size).to(trainer.device)


def check_views(golden: Golden):
    """Logits, entropies, chosen views and answers; then what MTA and TDA compute from them."""
    case = golden.case
    trainer, views = trainer_of_views(golden)
    state = trainer.method.new_state()
    features = [trainer.model.image_features(each) for each in views]
    with torch.no_grad():
        logits = torch.stack([trainer.method.logits(each) for each in features])
    if case["kind"] == "test-time":
        golden.same("logits_before", logits[:, 0])
    golden.same("logits_views", lambda: logits, abs=BEFORE)
    if "kept" in golden.figures:
        uncertain = [entropies(each) for each in logits]
        golden.same("entropies", lambda: torch.stack(uncertain), abs=BEFORE)
        share = case["cfg"]["SELECTION"]
        golden.same("kept", [most_confident(each, share).tolist() for each in logits])
    if case["kind"] == "stream":
        answers = torch.stack([trainer.method.logits_of_features(each, state) for each in features])
    else:
        answers = trainer.model_inference(views)
    golden.same("logits_after", answers)
    chosen = answers.argmax(dim=1)
    golden.same("predictions", lambda: chosen)
    if "labels" in golden.figures:
        right = np.mean(chosen.numpy() == golden.figures["labels"])
        golden.same("correct", lambda: right, abs=1e-3)
        if "correct" not in golden.figures:
            golden.same("accuracy", lambda: 100 * right, abs=0.1)
    if case["trainer"] == "MTA":
        check_mta(golden, trainer, features)
    if case["trainer"] == "TDA":
        check_tda(golden, trainer, features, state)


def check_mta(golden, trainer, features):
    """Bandwidths, how much each view counts at the end, and the mode."""
    widths = torch.stack([bandwidths(each).sqrt() for each in features])
    golden.same("bandwidths", widths, abs=1e-4)
    lambdas = trainer.method.settings.LAMBDA_Y, trainer.method.settings.LAMBDA_Q
    found = [mean_shift(each, trainer.method.logits(each), *lambdas) for each in features]
    golden.same("mode_first8", torch.stack([mode[:8] for mode, _ in found]), abs=1e-4)
    golden.same("inlierness", torch.stack([scores for _, scores in found]), abs=1e-4)


def check_tda(golden, trainer, features, state):
    """The numbers computed from each image, and the images in the caches at the end, by their
    features.
    """
    means = [trainer.method.mean_of_views(each) for each in features]
    images, logits, p = map(torch.stack, zip(*means, strict=True))
    golden.same("logits_before", logits)
    golden.same("pseudo_labels", logits.argmax(dim=1))
    golden.same("entropies", -(p * p.log()).sum(dim=1), abs=BEFORE)
    for cache, expected in golden.figures["cached"].items():
        entries = state[f"{cache.upper()}_ENTROPIES"].isfinite()
        found = {}
        for label, slot in entries.nonzero().tolist():
            entry = state[f"{cache.upper()}_FEATURES"][label, slot]
            found.setdefault(str(label), []).append(int((images - entry).norm(dim=1).argmin()))
        assert found == expected


def check_steps_of_tuning(golden: Golden):
    """Losses, gradients and vectors of every step of every image."""
    trainer, views = trainer_of_views(golden)
    figures = golden.figures
    name = "prompt_learner.ctx"
    objective = trainer.method.objective
    step = torch.optim.AdamW.step
    # Of each image, those of its steps
    losses = []
    gradients = []
    after = []
    start = trainer.model.get_buffer(name).clone()
    assert list(start.shape) == figures["trainable"][name]

    def noted(logits, text):
        loss = objective(logits, text)
        losses[-1].append(loss.item())
        return loss

    def stepped(optimizer):
        (ctx,) = optimizer.param_groups[0]["params"]
        gradients[-1].append(ctx.grad.clone())
        step(optimizer)
        after[-1].append(ctx.detach().clone())

    golden.patch.setattr(trainer.method, "objective", noted)
    golden.patch.setattr(torch.optim.AdamW, "step", stepped)
    for each in views:
        for record in (losses, gradients, after):
            record.append([])
        trainer.method.logits_of_features(trainer.model.image_features(each), {})
    assert torch.equal(trainer.model.get_buffer(name), start)
    gradients = torch.stack([torch.stack(each) for each in gradients])
    after = torch.stack([torch.stack(each) for each in after])  # (images, steps, vectors, width)
    golden.same("losses", losses)
    golden.same("grad_first8", gradients[:, 0, :, :8], abs=1e-3)
    golden.same("ctx_after_first8", after[:, -1, :, :8])
    if isinstance(figures["grad_norms"], list):  # of all vectors together
        golden.same("grad_norms", gradients.flatten(2).norm(dim=2), rel=1e-3)
        moved = (after[:, -1] - start).flatten(1).norm(dim=1)
        golden.same("ctx_moved_norms", moved, abs=1e-5)
        parts = figures["loss_parts"]
        weight = golden.case["cfg"]["LAMBDA"]
        total = np.array(parts["entropy"]) + weight * np.array(parts["orthogonality"])
        assert np.array(losses) == pytest.approx(total, abs=1e-3, rel=0)
        return
    norms = gradients.flatten(2).norm(dim=2)
    golden.same(name, norms, figures["grad_norms"], rel=1e-3)
    golden.same("ctx_before_norm", start.norm(), abs=1e-5)
    golden.same("ctx_after_norms", after.flatten(2).norm(dim=2)[:, -1], abs=1e-5)
    golden.same("ctx_moved_norms", (after - start).flatten(2).norm(dim=2), abs=1e-5)
    golden.same("ctx_after_first_step_first8", lambda: after[:, 0, :, :8])


def check_votes(golden: Golden):
    for case in golden.figures["zero_votes"]:
        cosines = torch.tensor(case["cosines"])
        uncertain = entropies(cosines / case["temperature"])
        golden.same("order", uncertain.argsort(), case)
        found = votes(cosines, uncertain, case["selection"])
        golden.same("prediction_meant", found.argmax(), case)
        # Else the published code chooses another class than is meant
        if "no remaining view" not in case["what"]:
            golden.same("votes", found, case)


# Features of views, alone or in a stream


def method_of(case, **settings):
    """The method of a case, without a model."""
    name = {"EM-Dirichlet": "EMDirichlet"}.get(case["trainer"], case["trainer"])
    if case["cfg"].get("hard"):
        name = f"Hard{name}"
    own = settings_of_method(name, {"PREC": "fp32"} | settings_of(case["cfg"]) | settings)
    cfg = configuration(name)
    cfg.merge_from_list(section_pairs(name, own))
    names = [f"class {number}" for number in range(case["features"]["classes"])]
    return trainers.methods()[name](cfg, Classes(names), torch.device("cpu"))


def method_of_views(case):
    """The method of a case on a CLIP with features of its width, and the features of views,
    (images, views, dim).
    """
    f = case["features"]
    method = method_of(case, **({"SUPPORT": True} if "support_labels" in f else {}))
    sizes = {"width": 64, "layers": 1}
    clip = random_clip("ViT-B-16", {"image_size": 16, **sizes}, sizes, f["dim"])
    clip.logit_scale.data.fill_(np.log(settings_of(case["cfg"]).get("SCALE", 100.0)))
    prompts = method.build_prompts(clip, method.class_names)
    method.model = method.Model(clip, prompts, "fast")
    method.texts = drawn_features(f)[1]
    noise = f["view_noise"] * drawn(17, len(f["test_labels"]), f["views"], f["dim"])
    noise[:, 0] = 0
    images = image_features(f | {"image_scale": 1}, 9, f["test_labels"])[0]
    return method, normalize(images[:, None] + noise, dim=2)


def check_tps(golden: Golden):
    method, views = method_of_views(golden.case)
    golden.same("logits_before", method.model.logits(views[:, 0], method.texts))
    shifts = torch.stack([method.shifted(image)[1] for image in views])
    golden.same("shift_norms", shifts.flatten(1).norm(dim=1), abs=1e-5)
    golden.same("shift_first8", shifts[:, :, :8])
    golden.same(
        "logits_after", torch.stack([method.logits_of_features(image, {}) for image in views])
    )


def check_dmn(golden: Golden):
    f = golden.case["features"]
    method, views = method_of_views(golden.case)
    if "support_labels" in f:
        images = normalize(image_features(f, 8, f["support_labels"])[0], dim=1)
        method.support = by_class(images, torch.tensor(f["support_labels"]), f["classes"])
    state = method.new_state()
    slots = []
    answers = []
    for image in views:
        before = state["ENTROPIES"].clone()
        answers.append(method.logits_of_features(image, state).exp())
        slots += (state["ENTROPIES"] != before).nonzero().tolist() or [None]
    golden.same("written_slot", slots)
    golden.same("sum", torch.stack(answers), abs=1e-4)


def check_boostadapter(golden: Golden):
    method, views = method_of_views(golden.case)
    state = method.new_state()
    golden.same("logits_before", 100 * views[:, 0] @ method.texts.T)
    golden.same(
        "logits_after", torch.stack([method.logits_of_features(image, state) for image in views])
    )
    for cache, sizes in golden.figures["cache_sizes_end"].items():
        counts = state[f"{cache.upper()}_ENTROPIES"].isfinite().sum(dim=1).tolist()
        assert {str(label): count for label, count in enumerate(counts) if count} == sizes
