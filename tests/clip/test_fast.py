"""The fast towers give the same features and gradients as the plain ones, for any texts and
schedules.
"""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from drawn import small_clip
from hypothesis import example, given, settings
from hypothesis import strategies as st
from marks import thorough_but
from open_clip.transformer import LayerNormFp32
from schedules import EXAMPLES, LAYERS, added, assert_same, edits, leaf

from clip import Edit, ImageOutput, TextPrompts, fast, plain
from clip.layout import layout_of

WIDTH = 64
POSITIONS = 60
EOT = 49


@pytest.fixture(
    scope="module", params=thorough_but((24,), (10_000, 0, 24)), ids=["together", "by row", "both"]
)
def clip(request):
    """With both forms of the text tower's attention; `both` changes the form where the rows become
    longer.
    """
    text = {"context_length": POSITIONS, "vocab_size": EOT + 1, "layers": LAYERS, "width": WIDTH}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clip.layout.AT_ONCE", request.param)
        yield small_clip({"layers": LAYERS, "width": WIDTH}, text).double()


def rows(names, n_ctx, words):
    """Rows of SOS, placeholders, common words, a different name, EOT and padding."""
    ids = torch.zeros(len(names), POSITIONS, dtype=torch.long)
    for row, name in zip(ids, names, strict=True):
        tokens = [EOT - 1, *[1] * n_ctx, *words, *name, EOT]
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


def assert_same_forms(function, arguments, leaves):
    """Outputs and gradients of the two forms agree."""
    outputs = [getattr(form, function)(*arguments) for form in (fast, plain)]
    if isinstance(outputs[0], ImageOutput):
        parts = [
            [out.feature, out.prompts, out.patches, out.local, *out.inputs.values()]
            for out in outputs
        ]
        outputs = [[x for x in form if x is not None] for form in parts]
    assert_same(*(out if isinstance(out, list) else [out] for out in outputs), leaves)


@st.composite
def texts(draw):
    """Names, and words before them that all rows have."""
    token = st.integers(2, 3) | st.integers(2, EOT - 2)  # so that names often share their beginning
    names = draw(st.lists(st.lists(token, min_size=1, max_size=40), min_size=1, max_size=6))
    return names, draw(st.lists(st.integers(2, EOT - 2), max_size=4))


@pytest.mark.slow
@settings(EXAMPLES, max_examples=40)
@given(
    texts=texts(),
    of=st.sampled_from(["all", "class", "image", "image and class"]),
    n_ctx=st.integers(0, 4),
    ahead=st.integers(0, 4),
    checkpointing=st.booleans(),
    data=st.data(),
)
@example(texts=([[2], [3]], []), of="class", n_ctx=0, ahead=0, checkpointing=False, data=None)
@example(texts=([[2], [3] * 40], [7]), of="all", n_ctx=2, ahead=2, checkpointing=True, data=None)
@example(texts=([[2], [2]], [7]), of="all", n_ctx=2, ahead=2, checkpointing=False, data=None)
def test_texts_under_any_prompts(clip, texts, of, n_ctx, ahead, checkpointing, data):
    """Vectors before and after the names, that differ by class or image, and deep prompts that do
    so too.
    """
    (names, words), ahead = texts, min(ahead, n_ctx)
    ids = torch.stack([rows([name + [1] * (n_ctx - ahead)], ahead, words)[0] for name in names])
    slots = torch.arange(1, 1 + n_ctx).repeat(len(names), 1)
    slots[:, ahead:] += torch.tensor([len(words) + len(name) for name in names])[:, None]
    by = {"all": (), "class": (len(names),), "image": (2, 1), "image and class": (2, len(names))}[
        of
    ]
    ctx = leaf(*by, n_ctx, WIDTH)
    deep = data.draw(edits(WIDTH, n_ctx, len(names))) if data else []
    if "image" in of and data.draw(st.booleans()):
        deep = [
            edit if edit.add is None else replace(edit, add=leaf(*by, *edit.add.shape[-2:]))
            for edit in deep
        ]
    prompts = TextPrompts(ids, ctx, slots if ahead < n_ctx else None, deep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip.transformer, "grad_checkpointing", checkpointing)
        assert_same_forms("encode_text", (clip, prompts), [*([ctx] if n_ctx else []), *added(deep)])
        patch.setitem(fast.TOKENS_PER_CHUNK, "cpu", 1)  # without gradients: one image at a time
        with torch.no_grad():
            assert_same_forms("encode_text", (clip, prompts), [])


def test_rows_share_their_prefix_up_to_the_layer_where_prompts_differ_by_class(clip):
    """Each layer's number of tokens, observed where attention's output is projected."""
    names = [[2, 3], [2, 4], [5]]  # the suffixes' beginnings are 2, 5, 2 3, 2 4 and EOT of each
    prompts = TextPrompts(
        rows(names, 2, [7]), leaf(2, WIDTH), deep=[Edit(), Edit(), Edit(2, leaf(3, 3, WIDTH))]
    )
    seen = []
    clip = deepcopy(clip)
    for block in clip.transformer.resblocks:
        block.attn.out_proj.register_forward_hook(lambda module, x, y: seen.append(x[0].shape[1]))
    fast.encode_text(clip, prompts)
    shared = 4 + 7  # SOS, two vectors, the word; the packed tokens
    assert seen == [shared, shared, 3]  # EOT of each row


def test_gradients_of_a_prefix_shared_by_many_classes_are_added_up_precisely(clip):
    """In bf16, adding 1,000 classes one by one stops when the sum is some hundred times what is
    added.
    """
    half = deepcopy(clip).to(torch.bfloat16)
    for module in half.modules():
        if isinstance(module, LayerNormFp32):
            module.float()
    ids = rows([[2 + number // 46, 2 + number % 46] for number in range(1000)], 2, [])
    ctx = torch.randn(2, WIDTH)
    weights = torch.randn(clip.text_projection.shape[-1], dtype=torch.double)

    def gradient(model, dtype):
        own = ctx.to(dtype).requires_grad_()
        features = fast.encode_text(model, TextPrompts(ids, own)).double()
        return torch.autograd.grad((features * weights).sum(), own)[0].double()

    exact = gradient(clip, torch.double)
    assert (gradient(half, torch.float32) - exact).norm() < 0.05 * exact.norm()


def test_texts_changed_in_place_are_read_again(clip):
    slots = torch.tensor([[1, 2], [1, 2]])
    prompts = TextPrompts(rows([[2], [3]], 2, []), leaf(2, WIDTH), slots)
    assert layout_of(replace(prompts, ctx=leaf(2, WIDTH))) is layout_of(prompts)
    assert_same_forms("encode_text", (clip, prompts), [])
    prompts.ids[1, 3] = 2
    assert_same_forms("encode_text", (clip, prompts), [])
    slots[:, 1] = 3
    assert_same_forms("encode_text", (clip, prompts), [])
    with torch.inference_mode():  # where edits are not counted
        prompts = TextPrompts(rows([[2], [3]], 0, []))
        assert_same_forms("encode_text", (clip, prompts), [])
        prompts.ids[1, 1] = 2
        assert_same_forms("encode_text", (clip, prompts), [])


@pytest.mark.parametrize("by_class", [False, True])
def test_text_first_used_in_inference_mode_can_train_later(clip, by_class):
    ctx = leaf(2, WIDTH)
    deep = leaf(*([2] if by_class else []), 3, WIDTH)
    prompts = TextPrompts(rows([[2], [3]], 2, []), ctx, deep=[Edit(), Edit(1, deep)])
    with torch.inference_mode():
        fast.encode_text(clip, prompts)
    assert_same_forms("encode_text", (clip, prompts), [ctx, deep])


@EXAMPLES
@given(
    schedule=edits(WIDTH, 0, 2),
    read=st.sets(st.sampled_from(["prompts", "patches", "local", 0, 2, -1])),
)
def test_images_under_any_schedule(clip, schedule, read):
    images = torch.randn(2, 3, 32, 32, dtype=torch.double)
    assert_same_forms(
        "encode_image", (clip, images, schedule, sorted(read, key=str)), added(schedule)
    )
