"""The two towers against open_clip's own, under a prompt schedule, and compiled."""

import pytest
import torch
from drawn import differing, prompts_of, small_clip
from schedules import LAYERS
from torch._dynamo.utils import counters

import trainers.base.trainer
from clip import (
    TOWERS,
    ClipError,
    TextPrompts,
    compiled_towers,
    load_backbone,
    prompt_lengths,
    tokenize,
)
from clip.plain import encode_image, encode_text
from trainers.mpl import MPLPrompts

# ---------------------------------------------------------------- no prompts: open_clip's own
# towers


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({}, {}),
        (
            {"image_size": 48, "patch_size": 8, "width": 128, "layers": LAYERS},
            {"width": 128, "heads": 2, "layers": 1},
        ),
        ({"image_size": 28, "patch_size": 14, "layers": 1}, {"context_length": 24, "layers": 4}),
        ({"image_size": (32, 64)}, {"proj_bias": True}),
    ],
)
def test_without_prompts_both_towers_equal_open_clips(vision, text, quick_gelu):
    model = small_clip(vision, text, quick_gelu)
    images = torch.randn(2, 3, *model.visual.image_size, generator=torch.manual_seed(0))
    ids = tokenize(["a photo of a river.", "x"], model.context_length)
    torch.testing.assert_close(encode_image(model, images).feature, model.encode_image(images))
    torch.testing.assert_close(encode_text(model, TextPrompts(ids)), model.encode_text(ids))


# ---------------------------------------------------------------- the number of prompts in each
# layer


@pytest.mark.parametrize(
    ("n", "a", "r", "depth"), [(1, 2, 1, 9), (2, 2, 1, 5), (2, 1, 2, 4), (4, 3, 4, 2), (3, 0, 1, 4)]
)
def test_number_of_prompts_grows_linearly_up_to_the_depth(n, a, r, depth):
    lengths = prompt_lengths([n, *[a * n] * (depth - 1)], [0, *[r] * (depth - 1)], 12)
    assert lengths == [n + min(layer, depth - 1) * (a * n - r) for layer in range(12)]


@pytest.mark.parametrize("form", TOWERS)
def test_add_and_remove_can_differ_by_layer(form):
    model = small_clip({"layers": 6}, {"layers": 6})
    lengths = []
    prompts = MPLPrompts(
        model, ["river", "annual crop"], 2, "a photo of a", [0, 3, 1, 0], [1, 0, 7, 2]
    )
    for block in model.visual.transformer.resblocks:
        # CLS, patches
        block.ln_1.register_forward_pre_hook(lambda ln_1, x: lengths.append(x[0].shape[1] - 5))
    TOWERS[form].encode_image(model, torch.zeros(1, 3, 32, 32), prompts.vision(), read=["patches"])
    assert lengths == prompt_lengths([2, 0, 6, 2, 0], [0, 1, 0, 7, 2], 6) == [2, 1, 7, 2, 0, 0]
    # A coupling for each layer with additions, and none for the others.
    names = {name.rsplit(".", 1)[0] for name, _ in prompts.txt2img_proj.named_parameters()}
    assert names == {"0.1", "0.2", "1.1", "2.1"}


@pytest.mark.parametrize(
    ("adds", "removes", "message"),
    [
        ([1, 2], [0, 2], "cannot remove 2 prompts before layer 1, which has 1"),
        ([1, 0, 0], [0, 1, 1], "cannot remove 1 prompts before layer 2, which has 0"),
        ([2], [1], "before layer 0, which has 0"),
        ([1] * 5, [0] * 5, "prompts for 5 layers, but the tower has 4"),
    ],
)
def test_invalid_schedule_is_rejected_with_the_layer(adds, removes, message):
    with pytest.raises(ClipError, match=message):
        prompt_lengths(adds, removes, 4)


# ---------------------------------------------------------------- CLIP is frozen


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_training_changes_only_prompts(precision, build, tiny):
    trainer = build(
        "MPL",
        "all",
        "PREC",
        precision,
        "PROMPT_DEPTH",
        3,
        backbone=tiny,
        options=("OPTIM.MAX_EPOCH", 1),
    )
    clip = trainer.model.clip
    learned = prompts_of(trainer)
    frozen = {key: value.clone() for key, value in clip.state_dict().items()}
    assert learned and all(key.startswith("prompt_learner.") for key in learned)
    assert list(learned) == [name for name, _ in trainer.model.named_parameters()]

    trainer.train()
    assert all(parameter.grad is None for parameter in clip.parameters())
    assert not any(module.training for module in clip.modules())
    assert differing(clip.state_dict(), frozen) == []
    assert differing(prompts_of(trainer), learned) == list(learned)


@pytest.fixture
def graphs():
    """A torch.compile backend that records and runs the graphs unchanged.

    Too many graphs of a layer are an error, and so is a layer that is divided into several.
    """

    def backend(graph, inputs):
        backend.kept.append(graph)
        return graph

    backend.kept = []
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield backend
    torch._dynamo.reset()
    assert not counters["graph_break"]


def learned(trainer, batches=2):
    """Losses of the first steps, the prompts after them, and logits of a test batch."""
    trainer.num_batches = len(trainer.train_loader_x)
    losses = []
    for index, batch in zip(range(batches), trainer.train_loader_x, strict=False):
        trainer.batch_idx = index
        losses.append(trainer.forward_backward(batch))
    trainer.set_model_mode("eval")
    return (
        losses,
        prompts_of(trainer),
        trainer.model_inference(next(iter(trainer.test_loader))["img"]),
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "at_once"),
    [
        *((name, 512) for name in ("MPL", "CoCoOp", "CoOp", "MMRL", "PromptSRC", "TCP")),
        *((name, 0) for name in ("MPL", "CoCoOp", "PromptSRC")),
        ("TCP", 32),  # the form of attention changes where prompts differ by class
    ],
)
def test_compiled_towers_train_and_predict_the_same(build, graphs, monkeypatch, method, at_once):
    monkeypatch.setattr("clip.layout.AT_ONCE", at_once)
    expected = learned(build(method))
    trainer = build(method)
    trainer.model.towers = compiled_towers(graphs)
    torch.testing.assert_close(learned(trainer), expected, rtol=1e-4, atol=1e-5)
    assert graphs.kept


def test_compile_without_a_gpu_is_ignored_with_a_note(build, capsys):
    trainer = build("CoOp", options=("MODEL.COMPILE", True))
    assert "MODEL.COMPILE is ignored: it needs a GPU" in capsys.readouterr().out
    assert trainer.model.towers is TOWERS["fast"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("towers", "found", "compiles"),
    [("fast", "triton", True), ("plain", "triton", False), ("fast", "nothing", False)],
)
def test_only_fast_towers_are_compiled_on_a_gpu_with_triton(
    build, monkeypatch, capsys, towers, found, compiles
):
    options = ["MODEL.BACKBONE.TOWERS", towers, "MODEL.BACKBONE.CHECKPOINT_TEXT", True]
    trainer = build("CoOp", options=[*options, "MODEL.COMPILE", True])
    assert ("CHECKPOINT_TEXT is ignored: it needs the fast" in capsys.readouterr().out) == (
        towers == "plain"
    )
    monkeypatch.setattr(trainers.base.trainer, "find_spec", lambda name: name == found or None)
    trainer.device = torch.device("cuda")
    trainer.set_towers()
    assert (trainer.model.towers is not TOWERS[towers]) == compiles
    assert (
        "MODEL.COMPILE is ignored: it needs a GPU, Triton and" in capsys.readouterr().out
    ) != compiles


SIZES = [
    (50, True),
    (50, False),
    (400, False),
    (50, True),
    (30, True),
    (30, False),
    (500, True),
    (500, False),
]


@pytest.mark.thorough
def test_texts_of_many_sizes_stay_below_the_limit_of_graphs(graphs):
    """Each form of a text layer has a limit of its own, as datasets of few and of many classes need
    different ones.
    """
    clip = load_backbone("small")
    towers = compiled_towers(graphs)
    ctx = torch.nn.Parameter(torch.zeros(4, clip.transformer.width))
    for classes, training in SIZES:
        prompts = TextPrompts(
            tokenize([f"X X X X class {number}" for number in range(classes)]), ctx
        )
        with torch.set_grad_enabled(training):
            features = towers.encode_text(clip, prompts)
        assert features.shape[0] == classes and features.requires_grad == training
    assert graphs.kept
