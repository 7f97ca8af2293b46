"""The two towers under a prompt schedule, against open_clip's own towers and a slow oracle written
from the paper.
"""

import pytest
import torch
from drawn import differing, prompts_of, small_clip
from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import EXAMPLES, LAYERS, added, assert_same, edits, leaf

from clip import TOWERS, ClipError, Edit, TextPrompts, prompt_lengths, tokenize
from clip.plain import encode_image, encode_text
from trainers.mpl import MPLPrompts

SMALL_TEXT = {"context_length": 12, "vocab_size": 30, "layers": LAYERS}
EOT = 29


@pytest.fixture(scope="module")
def small():
    """Three layers in each tower, widths 128 (two heads) and 64, 12 text positions, 30 tokens,
    double precision.
    """
    return small_clip({"layers": LAYERS, "width": 128}, SMALL_TEXT).double()


def token_rows(*lengths):
    """Rows of SOS, `length` words, EOT and padding."""
    generator = torch.manual_seed(1)
    words = [torch.randint(1, EOT - 1, (n,), generator=generator).tolist() for n in lengths]
    return torch.tensor([[EOT - 1, *row, EOT, *[0] * (10 - len(row))] for row in words])


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


# ---------------------------------------------------------------- the oracle: lists of tokens, one
# sequence at a time


def oracle_block(block, tokens, causal):
    x = torch.stack([vector for _, vector in tokens])
    mask = torch.ones(len(x), len(x), dtype=torch.bool).triu(1) if causal else None
    y = block.ln_1(x)
    x = x + block.attn(y, y, y, attn_mask=mask)[0]
    x = x + block.mlp(block.ln_2(x))
    return [(kind, vector) for (kind, _), vector in zip(tokens, x, strict=True)]


def oracle_edit(tokens, change, sequence, place):
    """Drop the last prompts and put the new ones after the remaining ones, or at `place` if none
    are present.
    """
    prompts = [i for i, (kind, _) in enumerate(tokens) if kind == "prompt"]
    end = prompts[-1] + 1 if prompts else place
    start = end - change.remove
    assert all(kind == "prompt" for kind, _ in tokens[start:end])
    add = (
        [] if change.add is None else change.add[sequence] if change.add.dim() == 3 else change.add
    )
    if change.weight != 1:
        old = [vector for _, vector in tokens[start:end]]
        add = [
            change.weight * new + (1 - change.weight) * vector
            for new, vector in zip(add, old, strict=True)
        ]
    return [*tokens[:start], *(("prompt", vector) for vector in add), *tokens[end:]]


def oracle_image(model, image, schedule, sequence):
    visual = model.visual
    p = model.visual.conv1.kernel_size[0]
    tokens = [("cls", visual.class_embedding + visual.positional_embedding[0])]
    positions = visual.positional_embedding
    for row in range(0, image.shape[1], p):
        for column in range(0, image.shape[2], p):
            patch = (visual.conv1.weight * image[:, row : row + p, column : column + p]).sum(
                (1, 2, 3)
            )
            tokens.append(("patch", patch + positions[len(tokens)]))
    for layer, block in enumerate(visual.transformer.resblocks):
        change = schedule[layer] if layer < len(schedule) else Edit()
        if layer == 0 and change.after_norm:
            tokens = [(kind, visual.ln_pre(vector)) for kind, vector in tokens]
        tokens = oracle_edit(tokens, change, sequence, len(tokens))
        if layer == 0 and not change.after_norm:
            tokens = [(kind, visual.ln_pre(vector)) for kind, vector in tokens]
        tokens = oracle_block(block, tokens, causal=False)
    prompts = [visual.ln_post(vector) for kind, vector in tokens if kind == "prompt"]
    return visual.ln_post(tokens[0][1]) @ visual.proj, torch.stack(
        prompts
    ) if prompts else torch.zeros(0, 128)


def oracle_text(model, ids, ctx, slots, deep, sequence):
    tokens = []
    learned = dict(zip(slots, ctx, strict=True))
    for position, token in enumerate(ids.tolist()):
        kind = (
            "eot"
            if token == EOT
            else "prompt"
            if position in learned
            else "word"
            if position
            else "sos"
        )
        vector = learned.get(position, model.token_embedding.weight[token])
        tokens.append((kind, vector + model.positional_embedding[position]))
    for layer, block in enumerate(model.transformer.resblocks):
        if layer < len(deep):
            tokens = oracle_edit(tokens, deep[layer], sequence, 1)
        tokens = oracle_block(block, tokens, causal=True)
    return model.ln_final(dict(tokens)["eot"]) @ model.text_projection


@EXAMPLES
@given(schedule=edits(128, 0, 2))
def test_any_vision_schedule_equals_the_oracle(small, schedule):
    images = leaf(2, 3, 32, 32)
    oracle = [oracle_image(small, image, schedule, i) for i, image in enumerate(images)]
    expected = [torch.stack(outputs) for outputs in zip(*oracle, strict=True)]
    output = encode_image(small, images, schedule, ("prompts",))
    got = output.feature, output.prompts
    assert torch.equal(got[0], encode_image(small, images, schedule).feature)
    assert_same(got, expected, [images, *added(schedule)])


CTX = {"none": (0, 64), "shared": (2, 64), "per class": (3, 2, 64), "per image": (2, 1, 2, 64)}


@pytest.mark.slow
@settings(EXAMPLES, max_examples=30)
@given(form=st.sampled_from(list(CTX)), anywhere=st.booleans(), data=st.data())
def test_any_text_prompts_equal_the_oracle(small, form, anywhere, data):
    """For three classes of 5, 4 and 7 words; vectors are anywhere in each class, as in CoOp's
    `middle` and `front`.
    """
    ids = token_rows(5, 4, 7)
    ctx = leaf(*CTX[form])
    n = ctx.shape[-2]
    slots = [[1, 4], [2, 3], [3, 6]] if anywhere and n else [[1, 2][:n]] * 3
    deep = [] if anywhere else data.draw(edits(64, n, 3))
    prompts = TextPrompts(
        ids, ctx if n else None, torch.tensor(slots) if anywhere and n else None, deep
    )
    expected = [
        torch.stack(
            [
                oracle_text(small, ids[c], own.expand(3, n, 64)[c], slots[c], deep, c)
                for c in range(3)
            ]
        )
        for own in (ctx if form == "per image" else [ctx])
    ]
    leaves = [*([ctx] if n else []), *added(deep)]
    assert_same(
        [encode_text(small, prompts)],
        [torch.stack(expected) if form == "per image" else expected[0]],
        leaves,
    )


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
