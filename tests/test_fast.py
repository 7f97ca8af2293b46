"""The fast towers give the same features and gradients as the plain ones, for any texts and schedules."""

import gc
import weakref
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from drawn import small_clip
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from marks import thorough_but
from open_clip.transformer import LayerNormFp32

from clip import Edit, ImageOutput, TextPrompts, fast, plain
from clip.layout import layout_of, token_layout

LAYERS, WIDTH, POSITIONS, EOT = 3, 64, 60, 49
EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module", params=thorough_but((24,), (10_000, 0, 24)), ids=["together", "by row", "both"])
def clip(request):
    """With both forms of the text tower's attention; `both` changes the form where the rows become longer."""
    text = {"context_length": POSITIONS, "vocab_size": EOT + 1, "layers": LAYERS, "width": WIDTH}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clip.layout.AT_ONCE", request.param)
        yield small_clip({"layers": LAYERS, "width": WIDTH}, text).double()


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.double).requires_grad_()


def rows(names, n_ctx, words):
    """Rows of SOS, placeholders, common words, a different name, EOT and padding."""
    ids = torch.zeros(len(names), POSITIONS, dtype=torch.long)
    for row, name in zip(ids, names, strict=True):
        tokens = [EOT - 1, *[1] * n_ctx, *words, *name, EOT]
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


def assert_same(function, arguments, leaves):
    """Outputs and gradients of the two forms agree to 1e-8 of their size."""
    outputs = found = [getattr(form, function)(*arguments) for form in (plain, fast)]
    if isinstance(outputs[0], ImageOutput):
        outputs = [[x for x in (out.feature, out.prompts, out.patches, out.local) if x is not None] for out in outputs]
        outputs = [parts + list(out.inputs.values()) for parts, out in zip(outputs, found, strict=True)]
        assert [x.shape for x in outputs[0]] == [x.shape for x in outputs[1]]
        outputs = [torch.cat([x.flatten() for x in form]) for form in outputs]
    weights = torch.randn(outputs[0].shape, dtype=torch.double)
    gradients = [torch.autograd.grad((out * weights).sum(), leaves) if leaves else () for out in outputs]
    for expected, got in zip((outputs[0], *gradients[0]), (outputs[1], *gradients[1]), strict=True):
        assert got.shape == expected.shape
        assert (got - expected).norm() <= 1e-8 * expected.norm()


@st.composite
def edits(draw, present, sequences=0):
    """Edits before some of the first layers; none removes more prompts than are present.

    With `sequences`, some add vectors that differ by sequence. Those before layer 0 may enter after `ln_pre`.
    """
    schedule = []
    for layer in range(draw(st.integers(0, LAYERS))):
        remove, add = draw(st.integers(0, present)), draw(st.integers(0, 4))
        own = [sequences] if sequences and draw(st.booleans()) else []
        after_norm = layer == 0 and draw(st.booleans())
        schedule.append(Edit(remove, leaf(*own, add, WIDTH) if add else None, after_norm))
        present += add - remove
    return schedule


def added(schedule):
    return [edit.add for edit in schedule if edit.add is not None]


@st.composite
def texts(draw):
    token = st.integers(2, 3) | st.integers(2, EOT - 2)  # so that names often share their beginning
    names = draw(st.lists(st.lists(token, min_size=1, max_size=40), min_size=1, max_size=6))
    n_ctx = draw(st.integers(0, 4))
    return names, n_ctx, rows(names, n_ctx, draw(st.lists(st.integers(2, EOT - 2), max_size=4)))


@EXAMPLES
@given(texts=texts(), data=st.data())
def test_texts_with_shared_context_and_deep_prompts(clip, texts, data):
    _, n_ctx, ids = texts
    ctx = leaf(n_ctx, WIDTH) if n_ctx else None
    deep = data.draw(edits(n_ctx))
    leaves = [*([ctx] if n_ctx else []), *added(deep)]
    assert_same("encode_text", (clip, TextPrompts(ids, ctx, deep=deep)), leaves)


@EXAMPLES
@given(texts=texts(), of=st.sampled_from(["all", "class", "image"]), data=st.data())
def test_deep_prompts_of_each_class(clip, texts, of, data):
    names, n_ctx, ids = texts
    ctx = leaf(*{"all": (), "class": (len(names),), "image": (2, 1)}[of], n_ctx, WIDTH)
    deep = data.draw(edits(n_ctx, sequences=len(names)))
    leaves = [*([ctx] if n_ctx else []), *added(deep)]
    assert_same("encode_text", (clip, TextPrompts(ids, ctx, deep=deep)), leaves)


@EXAMPLES
@given(texts=texts(), of=st.sampled_from(["image", "image and class"]), data=st.data())
def test_deep_prompts_of_each_image(clip, texts, of, data):
    names, n_ctx, ids = texts
    of = (2, len(names)) if of == "image and class" else (2, 1)
    ctx, deep = leaf(*of, n_ctx, WIDTH), data.draw(edits(n_ctx, sequences=len(names)))
    deep = [edit if edit.add is None else replace(edit, add=leaf(*of, *edit.add.shape[-2:])) for edit in deep]
    leaves = [*([ctx] if n_ctx else []), *added(deep)]
    assert_same("encode_text", (clip, TextPrompts(ids, ctx, deep=deep)), leaves)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(fast.TOKENS_PER_CHUNK, "cpu", 1)
        assert_same("encode_text", (clip, TextPrompts(ids, ctx, deep=deep)), [])


@EXAMPLES
@given(
    texts=texts(),
    of=st.sampled_from(["all", "class", "image"]),
    ahead=st.integers(0, 4),
    deeper=st.booleans(),
    data=st.data(),
)
@example(texts=([[2], [3]], 0, None), of="class", ahead=0, deeper=False, data=None)
def test_contexts_by_class_and_image_before_and_after_the_name(clip, texts, of, ahead, deeper, data):
    names, n_ctx, _ = texts
    ahead = min(ahead, n_ctx)  # vectors before the name
    ids = torch.stack([rows([name + [1] * (n_ctx - ahead)], ahead, [])[0] for name in names])
    slots = torch.arange(1, 1 + n_ctx).repeat(len(names), 1)
    slots[:, ahead:] += torch.tensor([len(name) for name in names])[:, None]
    ctx = leaf(*{"all": (), "class": (len(names),), "image": (2, 1)}[of], n_ctx, WIDTH)
    deep = data.draw(edits(n_ctx, sequences=len(names))) if deeper else []
    leaves = [*([ctx] if n_ctx else []), *added(deep)]
    assert_same("encode_text", (clip, TextPrompts(ids, ctx, slots, deep)), leaves)


@pytest.mark.parametrize("names", [[[2]], [[2], [3]], [[2], [2]], [[2, 3], [4, 5], [6, 7]], [[2], [3] * 40]])
def test_few_and_equal_and_very_long_names(clip, names):
    ctx, deep = leaf(2, WIDTH), leaf(2, WIDTH)
    assert_same("encode_text", (clip, TextPrompts(rows(names, 2, [7]), ctx, deep=[Edit(), Edit(2, deep)])), [ctx, deep])


def test_shared_beginning_of_names_is_computed_once(clip):
    names = [[2, 3, 4], [2, 3, 5], [2, 4], [6], [6]]
    ctx = leaf(2, WIDTH)
    prompts = TextPrompts(rows(names, 2, [7]), ctx)
    layout = token_layout(prompts)
    assert layout.packing.prefix == 4  # SOS, two vectors, the word
    beginnings = {tuple([*name, EOT][:length]) for name in names for length in range(1, len(name) + 2)}
    assert len(layout.packing.packed_index) == len(beginnings) == 10
    packed = prompts.ids[layout.row, layout.position][layout.packing.prefix :]
    assert packed.equal(layout.ids[layout.packing.prefix :])
    assert sorted(packed.tolist()) == sorted(beginning[-1] for beginning in beginnings)
    assert_same("encode_text", (clip, prompts), [ctx])


def test_layout_of_the_example_in_its_documentation(monkeypatch):
    monkeypatch.setattr("clip.layout.AT_ONCE", 12)
    audi, bmw, s4, s5 = range(2, 6)
    layout = token_layout(TextPrompts(rows([[audi, s4], [audi, s5], [bmw]], 2, []), torch.zeros(2, WIDTH)))
    packing = layout.packing
    assert layout.packing.prefix == 3
    assert packing.padded_index.tolist() == [[0, 2, 5], [0, 3, 6], [1, 4, 4]]
    assert packing.packed_index.tolist() == [0, 6, 1, 4, 7, 2, 5]
    assert (packing.eot.tolist(), packing.lengths.tolist()) == ([5, 6, 4], [3, 3, 2])
    assert packing.after(5) is packing.after(5)
    attended = [[0], [1], [0, 2], [0, 3], [1, 4], [0, 2, 5], [0, 3, 6]]  # by each packed token, besides the prefix
    masks = [packing.mask, packing.after(5).mask]
    monkeypatch.setattr("clip.layout.AT_ONCE", 9)
    assert packing.without_sharing(2, 0).mask is None and packing.after(4).mask is None
    for prefix, mask in zip((3, 5), masks, strict=True):
        mask = mask == 0
        assert mask[:prefix].equal(torch.ones(prefix, prefix + 7, dtype=torch.bool).tril())
        expected = [[*range(prefix), *(prefix + token for token in own)] for own in attended]
        assert [row.nonzero().flatten().tolist() for row in mask[prefix:]] == expected


def test_rows_share_their_prefix_up_to_the_layer_where_prompts_differ_by_class(clip):
    """Each layer's number of tokens, observed where attention's output is projected."""
    names = [[2, 3], [2, 4], [5]]  # the suffixes' beginnings are 2, 5, 2 3, 2 4 and EOT of each
    prompts = TextPrompts(rows(names, 2, [7]), leaf(2, WIDTH), deep=[Edit(), Edit(), Edit(2, leaf(3, 3, WIDTH))])
    seen = []
    handles = [
        block.attn.out_proj.register_forward_hook(lambda module, x, y: seen.append(x[0].shape[1]))
        for block in clip.transformer.resblocks
    ]
    fast.encode_text(clip, prompts)
    for handle in handles:
        handle.remove()
    shared = 4 + 7  # SOS, two vectors, the word; the packed tokens
    assert seen == [shared, shared, 3]  # EOT of each row
    layout = layout_of(prompts)
    # SOS stays shared. Each row has three vectors, the word, its name and EOT.
    assert layout.packing.without_sharing(2, 4).lengths.tolist() == [7, 7, 6]
    assert layout.packing.without_sharing(2, 4) is layout.packing.without_sharing(2, 4)


def test_layout_is_computed_once_for_each_text():
    prompts = TextPrompts(rows([[2], [3]], 2, []), torch.zeros(2, WIDTH))
    layout = layout_of(prompts)
    assert layout_of(replace(prompts, ctx=torch.ones(2, WIDTH))) is layout
    assert layout_of(replace(prompts, ids=prompts.ids.clone())) is not layout
    assert layout_of(replace(prompts, ctx=torch.zeros(1, WIDTH))) is not layout


def test_gradients_of_a_prefix_shared_by_many_classes_are_added_up_precisely(clip):
    """In bf16, adding 1,000 classes one by one stops when the sum is some hundred times what is added."""
    half = deepcopy(clip).to(torch.bfloat16)
    for module in half.modules():
        if isinstance(module, LayerNormFp32):
            module.float()
    ids = rows([[2 + number // 46, 2 + number % 46] for number in range(1000)], 2, [])
    ctx, weights = torch.randn(2, WIDTH), torch.randn(clip.text_projection.shape[-1], dtype=torch.double)

    def gradient(model, dtype):
        own = ctx.to(dtype).requires_grad_()
        features = fast.encode_text(model, TextPrompts(ids, own)).double()
        return torch.autograd.grad((features * weights).sum(), own)[0].double()

    exact = gradient(clip, torch.double)
    assert (gradient(half, torch.float32) - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("edited", ["ids", "slots"])
def test_layout_is_computed_again_after_an_edit_in_place(clip, edited):
    slots = torch.tensor([[1, 2], [1, 2], [1, 2]])
    prompts = TextPrompts(rows([[2, 3], [2, 4], [5, 6]], 2, []), leaf(2, WIDTH), slots)
    before = fast.encode_text(clip, prompts)
    if edited == "ids":
        prompts.ids[1, 3:6] = torch.tensor([5, EOT, 0])
    else:
        prompts.slots[:, 1] = 3
    assert not torch.allclose(fast.encode_text(clip, prompts), before)
    assert_same("encode_text", (clip, prompts), [prompts.ctx])


def test_layout_of_edited_inference_tensors_is_computed_again():
    with torch.inference_mode():
        prompts = TextPrompts(rows([[2], [3]], 0, []))
        assert layout_of(prompts).packing.prefix == 1
        prompts.ids[1, 1] = 2
        assert layout_of(prompts).packing.prefix == 2


@pytest.mark.parametrize("by_class", [False, True])
def test_text_first_used_in_inference_mode_can_train_later(clip, by_class):
    ctx, deep = leaf(2, WIDTH), leaf(*([2] if by_class else []), 3, WIDTH)
    prompts = TextPrompts(rows([[2], [3]], 2, []), ctx, deep=[Edit(), Edit(1, deep)])
    with torch.inference_mode():
        fast.encode_text(clip, prompts)
    assert_same("encode_text", (clip, prompts), [ctx, deep])


def test_cached_layout_keeps_no_tensor_alive():
    prompts = TextPrompts(rows([[2], [3]], 2, []), torch.zeros(2, WIDTH), torch.tensor([[1, 2], [1, 2]]))
    layout = weakref.ref(layout_of(prompts))
    tensors = [weakref.ref(tensor) for tensor in (prompts.ids, prompts.slots, prompts.ctx)]
    del prompts
    gc.collect()
    assert [tensor() for tensor in tensors] == [None] * 3
    assert layout() is None


def test_many_images_are_encoded_in_chunks(clip, monkeypatch):
    monkeypatch.setitem(fast.TOKENS_PER_CHUNK, "cpu", 7)
    prompts = TextPrompts(rows([[2], [3, 4]], 2, []), torch.randn(5, 1, 2, WIDTH, dtype=torch.double))
    with torch.no_grad():
        assert len(fast.image_chunks(prompts)) == 5
        assert_same("encode_text", (clip, prompts), [])


@EXAMPLES
@given(
    schedule=edits(present=0, sequences=2),
    read=st.sets(st.sampled_from(["prompts", "patches", "local", 0, 2, -1])),
)
def test_images_under_any_schedule(clip, schedule, read):
    images = torch.randn(2, 3, 32, 32, dtype=torch.double)
    assert_same("encode_image", (clip, images, schedule, sorted(read, key=str)), added(schedule))


def test_gradients_are_the_same_with_checkpointing_of_the_text_tower(clip, monkeypatch):
    monkeypatch.setattr(clip.transformer, "grad_checkpointing", True)
    ctx, deep = leaf(2, WIDTH), leaf(2, WIDTH)
    assert_same(
        "encode_text", (clip, TextPrompts(rows([[2], [3]], 2, []), ctx, deep=[Edit(), Edit(2, deep)])), [ctx, deep]
    )
