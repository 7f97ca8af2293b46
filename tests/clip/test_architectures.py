"""Models of open_clip that are not CLIP's: features as its own, prompts as a computation of the
test, adapters.
"""

import open_clip
import pytest
import torch
from tiny_models import CONVOLUTIONS, FAMILIES, HUGGING_FACE, both, read_by_hugging_face, rows_of

from clip import (
    BlockAdapter,
    ClipError,
    Edit,
    TextPrompts,
    adapt,
    encode_image,
    encode_text,
    image_tower,
    private_copy,
    takes_prompts,
    tokenizer_of,
    vision_width,
)

# Those whose text tower open_clip has
PUBLISHED = [
    arch
    for arch in sorted({arch for arch, _ in open_clip.list_pretrained()})
    if not open_clip.get_model_config(arch)["text_cfg"].get("hf_model_name")
]
TEXTS = ("a photo of a river.", "red", "an old green field with one tree.")


@pytest.fixture(scope="module")
def models():
    made = {}
    return lambda family: (
        made.setdefault(family, None)
        or made.update({family: both(FAMILIES[family])})
        or made[family]
    )


def images_of(model, count=2):
    size = model.visual.image_size
    return torch.randn(
        count,
        3,
        *(size if isinstance(size, tuple) else (size, size)),
        generator=torch.manual_seed(0),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_features_equal_open_clips_own(family, models):
    check_features(*models(family))


@pytest.mark.thorough
@pytest.mark.parametrize("arch", PUBLISHED)
def test_features_of_each_published_architecture_equal_open_clips_own(arch):
    check_features(*both(arch))


def check_features(theirs, ours):
    images = images_of(ours)
    ids = rows_of(ours, *TEXTS)
    expected = (
        theirs.encode_image(images, normalize=False),
        theirs.encode_text(ids, normalize=False),
    )
    found = encode_image(ours, images).feature, encode_text(ours, TextPrompts(ids))
    again = ours.encode_image(images), ours.encode_text(ids)
    for features in (found, again):
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    assert all(tensor.std(dim=0).mean() > 1e-6 for tensor in expected), "all have one feature"


def insert(x, start, present, remove, new):
    """Prompts between the first tokens and the others, unlike those of the product in the image
    tower.
    """
    new = new.expand(len(x), -1, -1)
    return torch.cat([x[:, : start + present - remove], new, x[:, start + present :]], dim=1)


def image_with_prompts(theirs, images, first, second):
    """open_clip's own forward pass; hooks add two prompts before layer 0, and replace one of them
    by two at layer 1.
    """
    visual = theirs.visual
    trunk = getattr(visual, "trunk", visual)
    blocks = trunk.blocks if trunk is not visual else visual.transformer.resblocks
    ahead = getattr(trunk, "num_prefix_tokens", 1)

    def before(start, present, remove, new):
        def hook(module, x):
            for block in blocks:  # which turn no positions of the tokens ahead of the patches
                if hasattr(block.attn, "num_prefix_tokens"):
                    block.attn.num_prefix_tokens = start + present - remove + len(new)
            return insert(x[0], start, present, remove, new), *x[1:]

        return hook

    norm = visual.ln_pre if trunk is visual else trunk.norm_pre
    hooks = [norm.register_forward_pre_hook(before(ahead, 0, 0, first))]
    hooks.append(blocks[1].register_forward_pre_hook(before(ahead, 2, 1, second)))
    if getattr(trunk, "attn_pool", None) is None:
        end = visual.transformer if trunk is visual else blocks
        last = end if trunk is visual else blocks[1]
        hooks.append(last.register_forward_hook(lambda *x: insert(x[2], ahead, 3, 3, first[:0])))
    try:
        output = visual(images)
    finally:
        for hook in hooks:
            hook.remove()
        for block in blocks:
            if hasattr(block.attn, "num_prefix_tokens"):
                block.attn.num_prefix_tokens = ahead
    return output[0] if isinstance(output, tuple) else output


def text_with_prompts(theirs, ids, start, ctx, deep):
    """open_clip's own forward pass; hooks replace the two tokens at `start`, and again before layer
    1.
    """
    text = getattr(theirs, "text", theirs)
    word = text.token_embedding.register_forward_hook(lambda *x: insert(x[2], start, 2, 2, ctx))
    layer = text.transformer.resblocks[1].register_forward_pre_hook(
        lambda module, x: (insert(x[0], start, 2, 2, deep), *x[1:])
    )
    try:
        return theirs.encode_text(ids, normalize=False)
    finally:
        word.remove()
        layer.remove()


def same_gradients(found, expected, leaves):
    """Outputs and the gradients of a weighted sum of them, to 1e-5 of the largest."""
    weights = torch.randn(expected.shape, generator=torch.manual_seed(2))
    pairs = [(found, expected)]
    pairs += zip(
        *(torch.autograd.grad((output * weights).sum(), leaves) for output in (found, expected)),
        strict=True,
    )
    for ours, theirs in pairs:
        assert theirs.abs().max() > 0 and (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def vectors(*shapes):
    return [
        0.5 * torch.randn(*shape, generator=torch.manual_seed(i)).requires_grad_()
        for i, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in CONVOLUTIONS])
def test_vision_prompts_and_their_gradients_equal_hooks_in_the_original(family, models):
    theirs, ours = models(family)
    images = images_of(ours)
    width = vision_width(ours)
    first, second = vectors((2, width), (2, width))
    found = encode_image(
        ours, images, [Edit(add=first), Edit(1, second)], read=["prompts", "patches", "local"]
    )
    same_gradients(
        found.feature, image_with_prompts(theirs, images, first, second), [first, second]
    )
    rows, columns = image_tower(ours).grid
    shapes = [tuple(part.shape) for part in (found.prompts, found.patches, found.local)]
    assert shapes == [(2, 3, width), (2, rows * columns, width), (2, rows * columns, 32)]


@pytest.mark.parametrize(
    "family", ["CoCa", "CLIPA", "MetaCLIP 2", "MobileCLIP2-L", "PE-Core", "SigLIP"]
)
def test_text_prompts_and_their_gradients_equal_hooks_in_the_original(family, models):
    theirs, ours = models(family)
    start = tokenizer_of(ours).start
    ids = rows_of(ours, *(f"X X {text}" for text in TEXTS))
    ctx, deep = vectors((2, 32), (2, 32))
    found = encode_text(ours, TextPrompts(ids, ctx, deep=[Edit(), Edit(2, deep)]))
    same_gradients(found, text_with_prompts(theirs, ids, start, ctx, deep), [ctx, deep])


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_prompts_of_a_hugging_face_tower_equal_hooks_in_the_original(kind):
    pytest.importorskip("transformers")
    theirs, ours = read_by_hugging_face(kind)
    ids = rows_of(ours, *(f"X X {text}" for text in TEXTS))
    (ctx,) = vectors((2, 32))
    words = theirs.text.transformer.get_input_embeddings()
    hook = words.register_forward_hook(lambda *x: insert(x[2], tokenizer_of(ours).start, 2, 2, ctx))
    expected = theirs.encode_text(ids, normalize=False)
    hook.remove()
    same_gradients(encode_text(ours, TextPrompts(ids, ctx)), expected, [ctx])
    with pytest.raises(ClipError, match="at its input only.*CoOp"):
        encode_text(ours, TextPrompts(ids, ctx, deep=[Edit(), Edit(1, ctx)]))


@pytest.mark.parametrize("family", sorted(CONVOLUTIONS))
def test_convolutions_take_no_prompts(family, models):
    _, ours = models(family)
    assert not takes_prompts(ours)
    with pytest.raises(ClipError, match="need a vision transformer"):
        encode_image(ours, images_of(ours), [Edit(add=torch.zeros(1, 32))])


class Everywhere(BlockAdapter):
    """A linear map at each place of a block."""

    def __init__(self, width):
        super().__init__()
        shapes = {
            "attention_input": 3 * width,
            "attention_output": width,
            "mlp": width,
            "parallel": width,
        }
        for name, rows in shapes.items():
            matrix = 0.1 * torch.randn(rows, width, generator=torch.manual_seed(len(name)))
            self.register_parameter(f"of_{name}", torch.nn.Parameter(matrix))

    def attention_input(self, x):
        return x @ self.of_attention_input.T

    def attention_output(self, x):
        return x @ self.of_attention_output.T

    def mlp(self, x):
        return x @ self.of_mlp.T

    def parallel(self, x):
        return x @ self.of_parallel.T


def adapted(visual, adapter):
    """open_clip's own tower with the same changes in layer 1: in weights, and by hooks; returns
    these weights.
    """
    trunk = getattr(visual, "trunk", visual)
    block = trunk.blocks[1] if trunk is not visual else visual.transformer.resblocks[1]
    attention = block.attn
    changes = adapter.of_attention_input.detach()
    names = ["in_proj_weight"] if hasattr(attention, "in_proj_weight") else ["qkv.weight"]
    names = (
        ["q_proj.weight", "k_proj.weight", "v_proj.weight"]
        if getattr(attention, "qkv", 1) is None
        else names
    )
    weights = [attention.get_parameter(name) for name in names]
    for weight, change in zip(weights, changes.chunk(len(weights)), strict=True):
        weight.data = weight.data + change
        weight.requires_grad_()
    out = attention.out_proj if hasattr(attention, "out_proj") else attention.proj
    out.weight.data = out.weight.data + adapter.of_attention_output.detach()
    block.mlp.register_forward_hook(lambda module, x, y: y + adapter.mlp(x[0]))
    norm = block.ln_1 if hasattr(block, "ln_1") else block.norm1
    block.register_forward_hook(lambda module, x, y: y + adapter.parallel(norm(x[0])))
    return weights


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in CONVOLUTIONS])
def test_adapters_equal_changed_weights_and_hooks_in_the_original(family):
    theirs, ours = both(FAMILIES[family])
    images = images_of(ours)
    adapter = Everywhere(vision_width(ours))
    before = encode_image(ours, images).feature
    copy = private_copy(ours)
    adapt(copy.visual, 1, adapter)
    weights = adapted(theirs.visual, adapter)
    found = encode_image(copy, images).feature
    expected = theirs.encode_image(images, normalize=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    (gradient,) = torch.autograd.grad(found.square().sum(), [adapter.of_attention_input])
    others = torch.cat(torch.autograd.grad(expected.square().sum(), weights))
    assert (gradient - others).abs().max() < 1e-4 * others.abs().max()
    assert torch.equal(encode_image(ours, images).feature, before)
    with pytest.raises(ClipError, match="has an adapter"):
        adapt(copy.visual, 1, adapter)
