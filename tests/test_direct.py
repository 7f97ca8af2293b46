"""TCP, UPT and MMRL under other settings than those of the golden figures, against step-by-step implementations.

These use open_clip's own blocks and lists of tokens, and nothing of `clip/`.
"""

import pytest
import torch
import torch.nn.functional as F
from marks import thorough_but

from clip import tokenize

pytestmark = pytest.mark.slow

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0))
LABELS = torch.tensor([1, 4])
NAMES = ["red", "green field", "blue lake", "grey", "white snow", "black"]


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def encode_text(clip, x, eot, change=lambda layer, x: x):
    """Token vectors (C, 77, width), without positions, to unit features; `change` may lengthen them behind SOS."""
    x = x + clip.positional_embedding
    for layer, block in enumerate(clip.transformer.resblocks):
        x = change(layer, x)
        length = x.shape[1]
        x = block(x, attn_mask=torch.full((length, length), float("-inf")).triu(1))
    eot = eot + x.shape[1] - clip.context_length
    return unit(clip.ln_final(x)[torch.arange(len(x)), eot] @ clip.text_projection)


def encode_image(clip, change=lambda layer, x: x):
    """All tokens of the last layer, after `ln_post`: (batch, tokens, width); CLS is the first."""
    visual = clip.visual
    x = visual.conv1(IMAGES).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(x)
    for layer, block in enumerate(visual.transformer.resblocks):
        x = block(change(layer, x))
    return visual.ln_post(x)


def replace(x, start, removed, new):
    """The tokens of each sequence, `removed` of them replaced by `new`, (n, width) or (sequences, n, width)."""
    return torch.cat([x[:, :start], new.expand(len(x), -1, -1), x[:, start + removed :]], dim=1)


def randomised(trainer):
    generator = torch.manual_seed(3)
    for parameter in trainer.model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return dict(trainer.saved_module().named_parameters())


def assert_loss(trainer, learned, loss, logits, parts):
    """The trainer's loss, logits, parts and gradients."""
    output = trainer.model.output(IMAGES)
    got = trainer.loss(output, LABELS)
    torch.testing.assert_close((got[0], output.logits), (loss, logits), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[1], parts, rtol=1e-4, atol=1e-4)
    ours, expected = (torch.autograd.grad(value, list(learned.values())) for value in (got[0], loss))
    for name, a, b in zip(learned, ours, expected, strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm() + 1e-6, name


TCP_DATASETS = "EuroSAT", "StanfordCars", "DescribableTextures", "UCF101", "ImageNetV2"


@pytest.mark.parametrize("dataset", thorough_but(("EuroSAT",), TCP_DATASETS))
@pytest.mark.parametrize(("n_ctx", "init"), [(1, False), (3, False), (4, True)])
def test_tcp(n_ctx, init, dataset, build, stand_in):
    template, taught = {
        "EuroSAT": ("X X X X {}.", "a centered satellite photo of {}."),
        "StanfordCars": ("X X X X {}, a type of car", "a photo of a {}."),
        "DescribableTextures": ("X X X X {} texture.", "a photo of a {}, a type of texture."),
        "UCF101": ("a photo of a person doing {}.", "a photo of a person doing {}."),
        "ImageNetV2": ("a photo of a {}.", "a photo of a {}."),
    }[dataset]
    stand_in(dataset)
    trainer = build("TCP", "all", "N_CTX", n_ctx, "CTX_INIT", init, options=("DATASET.NAME", dataset))
    clip = trainer.model.clip
    if init:
        words = clip.token_embedding(tokenize("a photo of a")[0, 1:5])
        torch.testing.assert_close(trainer.model.prompt_learner.ctx.data, words)
    learned = randomised(trainer)

    with torch.no_grad():
        teacher = unit(clip.encode_text(tokenize([taught.format(name) for name in NAMES])))
    ids = tokenize([template.format(name) for name in NAMES])
    x = replace(clip.token_embedding(ids), 1, n_ctx, learned["ctx"])
    hidden = F.linear(teacher, learned["meta_net.linear1.weight"], learned["meta_net.linear1.bias"])
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    own = F.linear(hidden, learned["meta_net.linear2.weight"], learned["meta_net.linear2.bias"]).reshape(6, 4, 64)
    text = encode_text(clip, x, ids.argmax(1), lambda layer, x: replace(x, 1, 4, own) if layer == 8 else x)
    image = unit(encode_image(clip)[:, 0] @ clip.visual.proj)
    logits = clip.logit_scale.exp() * image @ text.T
    parts = {"loss_ce": F.cross_entropy(logits, LABELS), "loss_score": 1 - F.cosine_similarity(text, teacher).mean()}
    assert_loss(trainer, learned, parts["loss_ce"] + 8 * parts["loss_score"], logits, parts)


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize(
    ("position", "n_text", "n_vision", "dim", "every_layer"),
    [("middle", 3, 2, 32, True), ("end", 2, 1, 64, False), ("front", 1, 4, 64, True), ("middle", 4, 4, 128, True)],
)
def test_upt(position, n_text, n_vision, dim, every_layer, unified, build):
    settings = {"N_CTX_TEXT": n_text, "N_CTX_VISION": n_vision, "PROJECT_DIM": dim, "DEEP": every_layer}
    settings |= {"CLASS_TOKEN_POSITION": position, "UNIFIED": unified}
    trainer = build("UPT", "all", *(item for pair in settings.items() for item in pair))
    clip, learned = trainer.model.clip, randomised(trainer)
    layers = 12 if every_layer else 1

    def linear(name, x):
        weight = learned.get(f"{name}.weight")
        assert (weight is None) == (name.startswith("mvlpt_proj_ctx") and dim == 64)  # between equal widths
        return x if weight is None else x @ weight.T + learned[f"{name}.bias"]

    def norm(name, x):
        return F.layer_norm(x, (dim,), learned[f"{name}.weight"], learned[f"{name}.bias"])

    vision = [learned["vpt_embeddings"][0], *(learned["vpt_embeddings_deep"] if every_layer else [])]
    assert len(vision) == layers
    joint = [linear("mvlpt_proj_ctx_coop_pre", vector) for vector in learned["ctx"]]
    joint += [linear("mvlpt_proj_ctx_vpt_pre", vector) for layer in vision for vector in layer]
    x, block = torch.stack(joint), "mvlpt_proj.resblocks.0"
    weight, bias = (learned[f"{block}.attn.in_proj_{kind}"] for kind in ("weight", "bias"))
    q, k, v = (norm(f"{block}.ln_1", x) @ weight.T + bias).chunk(3, dim=1)
    attended = (q @ k.T / dim**0.5).softmax(dim=1) @ v if unified else v
    x = x + linear(f"{block}.attn.out_proj", attended)
    hidden = linear(f"{block}.mlp.c_fc", norm(f"{block}.ln_2", x))
    x = x + linear(f"{block}.mlp.c_proj", hidden * torch.sigmoid(1.702 * hidden))
    ctx = linear("mvlpt_proj_ctx_coop_post", x[:n_text])
    prompts = linear("mvlpt_proj_ctx_vpt_post", x[n_text:]).reshape(layers, n_vision, 64)

    rows, eot = [], []
    for name in NAMES:
        ids = tokenize(f"{' '.join('X' * n_text)} {name}.")[0]
        vectors = clip.token_embedding(ids)
        length = int((tokenize(name) > 0).sum()) - 2
        words = vectors[1 + n_text : 1 + n_text + length]
        before = {"end": n_text, "middle": n_text // 2, "front": 0}[position]
        rows.append(torch.cat([vectors[:1], ctx[:before], words, ctx[before:], vectors[1 + n_text + length :]]))
        eot.append(ids.argmax())
    text = encode_text(clip, torch.stack(rows), torch.tensor(eot))

    def change(layer, x):  # directly behind CLS
        return replace(x, 1, n_vision if layer else 0, prompts[layer]) if layer < layers else x

    image = unit(encode_image(clip, change)[:, 0] @ clip.visual.proj)
    logits = clip.logit_scale.exp() * image @ text.T
    assert_loss(trainer, learned, F.cross_entropy(logits, LABELS), logits, {})


@pytest.mark.parametrize(
    ("layers", "n", "dim", "alpha", "weight"),
    [([1, 2, 3], 2, 16, 0.3, 2), ([12], 1, 8, 1, 0.5), ([6, 7, 8, 9, 10, 11, 12], 5, 32, 0.7, 0), ([2], 3, 8, 0, 1)],
)
def test_mmrl(layers, n, dim, alpha, weight, build):
    settings = {"REP_LAYERS": layers, "N_REP_TOKENS": n, "REP_DIM": dim, "ALPHA": alpha, "REG_WEIGHT": weight}
    trainer = build("MMRL", "all", *(item for pair in settings.items() for item in pair))
    clip, learned = trainer.model.clip, randomised(trainer)

    def change(tower):
        def change(layer, x):
            if layer + 1 not in layers:
                return x
            index = layers.index(layer + 1)
            name = f"representation_learner.compound_rep_tokens_r2{tower}proj.{index}"
            tokens = learned["representation_learner.compound_rep_tokens"] @ learned[f"{name}.weight"].T
            return replace(x, 1, n if index else 0, tokens + learned[f"{name}.bias"])

        return change

    ids = tokenize([f"a centered satellite photo of {name}." for name in NAMES])
    text = encode_text(clip, clip.token_embedding(ids), ids.argmax(1), change("t"))
    tokens = encode_image(clip, change("v"))
    image = unit(tokens[:, 0] @ clip.visual.proj)
    image_rep = unit(tokens[:, 1 : 1 + n].mean(1) @ learned["image_encoder.proj_rep"])
    with torch.no_grad():
        taught_image = unit(encode_image(clip)[:, 0] @ clip.visual.proj)
        taught_text = unit(clip.encode_text(ids))
    logits, logits_rep = 100 * image @ text.T, 100 * image_rep @ text.T
    fusion = alpha * logits + (1 - alpha) * logits_rep
    parts = {
        "loss_ce": F.cross_entropy(logits, LABELS),
        "loss_ce_rep": F.cross_entropy(logits_rep, LABELS),
        "loss_reg_image": 1 - F.cosine_similarity(image, taught_image).mean(),
        "loss_reg_text": 1 - F.cosine_similarity(text, taught_text).mean(),
    }
    loss = alpha * parts["loss_ce"] + (1 - alpha) * parts["loss_ce_rep"]
    loss = loss + weight * (parts["loss_reg_image"] + parts["loss_reg_text"])
    assert_loss(trainer, learned, loss, fusion, parts)
    for classes_learned, expected in ((True, fusion), (False, logits)):
        trainer.model.classes_learned = classes_learned
        torch.testing.assert_close(trainer.model_inference(IMAGES), expected, rtol=1e-4, atol=1e-3)
