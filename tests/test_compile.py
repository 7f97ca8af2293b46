"""MODEL.COMPILE changes how the towers' layers run, not their results. On a CPU, and without
generated code.
"""

import pytest
import torch
from drawn import prompts_of
from torch._dynamo.utils import counters

import trainers.base.trainer
from clip import TOWERS, TextPrompts, compiled_towers, load_backbone, tokenize


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
