"""KgCoOp, ProGrad, CoCoOp beyond their golden figures: first values, sentences of the teacher, loss
scaling.
"""

import math

import pytest
import torch
from drawn import differing, prompts_of

from clip import tokenize

pytestmark = pytest.mark.slow

BATCH = {
    "img": torch.randn(3, 3, 32, 32, generator=torch.manual_seed(0)),
    "label": torch.tensor([0, 1, 2]),
}


def step(trainer):
    trainer.batch_idx = 0
    trainer.num_batches = 9
    return trainer.forward_backward(BATCH)


def words_of(trainer, words):
    """Token embeddings of words of one token each."""
    ids = tokenize(words)[0]
    return trainer.model.clip.token_embedding(ids[1 : 1 + len(words.split())])


@pytest.mark.parametrize(
    ("settings", "new"),
    [
        (("LINEAR_PROBE", False), {"linear_probe_proj"}),
        (("TYPE", "similarity"), {"film_lp_img", "film_lp_text"}),
        (("LINEAR_PROBE", False, "TYPE", "similarity"), set()),
    ],
)
def test_ablations_of_dept_have_no_unused_parameters(settings, new, build):
    """ProGrad's second gradient was a traceback with them."""
    trainer = build("DePT+ProGrad", "base", *settings)
    step(trainer)
    gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    assert {name.partition(".")[0] for name in gradients} == {"prompt_learner"} | new
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())


STARTS = [("KgCoOp", True, 4), ("KgCoOp", "a photo of a", 4)]  # the words alone, whatever N_CTX is
STARTS += [("ProGrad", True, 16), ("ProGrad", "an aerial view", 16), ("CoCoOp", True, 16)]


@pytest.mark.parametrize(("method", "words", "length"), STARTS)
def test_context_starts_from_zeros_and_then_words(method, words, length, build):
    """CoCoOp's files in ProGrad's repository have CTX_INIT True, with the meaning that it has for
    ProGrad.
    """
    trainer = build(method, "base", "CTX_INIT", words)
    own = "a photo of a" if method == "KgCoOp" else "a centered satellite photo of"
    expected = words_of(trainer, own if words is True else words)
    ctx = trainer.model.prompt_learner.ctx
    assert ctx.shape == (length, 64) and torch.equal(ctx[-len(expected) :], expected)
    assert not ctx[: -len(expected)].any() and expected.any(dim=1).all()


@pytest.mark.parametrize(
    ("method", "dataset", "template", "sentence"),
    [
        ("KgCoOp", "EuroSAT", "", "a centered satellite photo of {}."),
        ("ProGrad", "EuroSAT", "", "a centered satellite photo of {}."),
        ("KgCoOp", "DescribableTextures", "", "a photo of a {}, a type of texture."),
        ("ProGrad", "DescribableTextures", "", "a texture of {}."),
        ("KgCoOp", "DescribableTextures", "{} from above.", "{} from above."),  # the user's
    ],
)
def test_sentence_of_the_teacher(method, dataset, template, sentence, build, stand_in):
    stand_in(dataset)
    trainer = build(method, "base", options=("DATASET.TEMPLATE", template, "DATASET.NAME", dataset))
    assert trainer.method.teacher.texts == [
        [sentence.format(name)] for name in trainer.method.class_names
    ]


def test_teacher_of_an_amp_run_computes_in_fp32(build):
    kl = {}
    for precision in ("fp32", "amp"):
        trainer = build("ProGrad", "base", "PREC", precision)
        seen = kl[precision] = []
        logits = trainer.model.logits
        trainer.model.logits = lambda image, text, logits=logits, seen=seen: (
            seen.append(image) or logits(image, text)
        )
        step(trainer)
    student, teacher = kl["amp"]
    assert torch.equal(teacher, kl["fp32"][1]) and not torch.equal(student, teacher)


@pytest.mark.parametrize("method", ["CoOp", "ProGrad"])
def test_loss_scaling_does_not_change_a_step(method, build):
    after = {}
    for scale in (0, 1024.0):
        trainer = build(method, "base")
        trainer.method.training.scaler = torch.amp.GradScaler(
            "cpu", init_scale=scale or 1.0, enabled=bool(scale)
        )
        step(trainer)
        after[scale] = prompts_of(trainer)["prompt_learner.ctx"]
    assert torch.allclose(after[0], after[1024.0], atol=1e-7)


def test_scaler_skips_a_step_if_the_second_gradient_overflows(build):
    trainer = build("ProGrad", "base")
    trainer.method.training.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = prompts_of(trainer)
    loss = trainer.method.loss

    def overflowing(output, labels):
        xe, parts = loss(output, labels)
        return xe, parts | {"loss_kl": parts["loss_kl"] * 3e38}

    trainer.method.loss = overflowing
    step(trainer)
    assert differing(prompts_of(trainer), before) == [] and trainer.method.scaler.get_scale() == 512


def test_a_plugin_keeps_the_schedule_of_its_method(build):
    """DePT had Dassl's schedule of epochs, which CLIP-LoRA steps after each batch: the rate rose
    again.
    """
    alone = build("CLIPLoRA", "base", "N_ITERS", 3)
    head = build("DePT+CLIPLoRA", "base", "N_ITERS", 3)
    for step in range(alone.method.steps + 1):
        rates = [group["lr"] for trainer in (alone, head) for group in trainer.optim.param_groups]
        share = (1 + math.cos(math.pi * step / alone.method.steps)) / 2
        assert rates == pytest.approx(
            [1e-6 + (factor * alone.cfg.OPTIM.LR - 1e-6) * share for factor in (1, 1, 6.5)]
        )
        for trainer in (alone, head):
            trainer.optim.step()
            trainer.update_lr()


# TCP: which words of a dataset's sentence are learned.


TCP_DATASETS = {  # the learned sentence and the teacher's
    "EuroSAT": ("X X X X {}.", "a centered satellite photo of {}."),
    "StanfordCars": ("X X X X {}, a type of car", "a photo of a {}."),
    "DescribableTextures": ("X X X X {} texture.", "a photo of a {}, a type of texture."),
    "UCF101": ("a photo of a person doing {}.", "a photo of a person doing {}."),
    "ImageNetV2": ("a photo of a {}.", "a photo of a {}."),
}


@pytest.mark.parametrize("dataset", TCP_DATASETS)
@pytest.mark.parametrize(("n_ctx", "init"), [(1, False), (3, False), (4, True)])
def test_tcp_replaces_the_first_words_of_the_sentence_of_a_dataset(
    n_ctx, init, dataset, build, stand_in
):
    template, taught = TCP_DATASETS[dataset]
    stand_in(dataset)
    of_dataset = "DATASET.NAME", dataset
    trainer = build("TCP", "all", "N_CTX", n_ctx, "CTX_INIT", init, options=of_dataset)
    names = trainer.method.class_names
    learner = trainer.model.prompt_learner
    prompts = learner.text(torch.empty(0))
    ids = tokenize([template.format(name) for name in names])
    assert torch.equal(prompts.ids, ids)
    assert trainer.method.teacher.texts == [[taught.format(name)] for name in names]
    assert learner.ctx.shape == (n_ctx, 64)
    if init:
        torch.testing.assert_close(learner.ctx.data, words_of(trainer, "a photo of a"))
    fixed = trainer.model.clip.token_embedding(ids[0, 1 + n_ctx : 5])
    torch.testing.assert_close(prompts.ctx, torch.cat([learner.ctx, fixed]))
    assert [edit.remove for edit in prompts.deep] == [0] * 8 + [4]
    assert prompts.deep[8].add.shape == (6, 4, 64)
