"""TCP and UPT under other settings than those of the golden figures.

UPT's implementation here uses open_clip's own blocks and lists of tokens, and nothing of `clip/`.
"""

import pytest
import torch
import torch.nn.functional as F

from clip import tokenize

pytestmark = pytest.mark.slow

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0))
LABELS = torch.tensor([1, 4])
NAMES = ["red", "green field", "blue lake", "grey", "white snow", "black"]


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def encode_text(clip, x, eot):
    """Token vectors (C, 77, width), without positions, to unit features."""
    x = x + clip.positional_embedding
    for block in clip.transformer.resblocks:
        x = block(x, attn_mask=torch.full((77, 77), float("-inf")).triu(1))
    return unit(clip.ln_final(x)[torch.arange(len(x)), eot] @ clip.text_projection)


def encode_image(clip, prompts):
    """Unit features (batch, joint); the first layers have these prompts (layers, n, width) directly behind CLS."""
    visual, n = clip.visual, prompts.shape[1]
    x = visual.conv1(IMAGES).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(x)
    for layer, block in enumerate(visual.transformer.resblocks):
        if layer < len(prompts):
            x = torch.cat([x[:, :1], prompts[layer].expand(len(x), -1, -1), x[:, 1 + n * (layer > 0) :]], dim=1)
        x = block(x)
    return unit(visual.ln_post(x)[:, 0] @ visual.proj)


TCP_DATASETS = {  # the learned sentence and the teacher's
    "EuroSAT": ("X X X X {}.", "a centered satellite photo of {}."),
    "StanfordCars": ("X X X X {}, a type of car", "a photo of a {}."),
    "DescribableTextures": ("X X X X {} texture.", "a photo of a {}, a type of texture."),
    "UCF101": ("a photo of a person doing {}.", "a photo of a person doing {}."),
    "ImageNetV2": ("a photo of a {}.", "a photo of a {}."),
}


@pytest.mark.parametrize("dataset", TCP_DATASETS)
@pytest.mark.parametrize(("n_ctx", "init"), [(1, False), (3, False), (4, True)])
def test_tcp_replaces_the_first_words_of_the_sentence_of_a_dataset(n_ctx, init, dataset, build, stand_in):
    template, taught = TCP_DATASETS[dataset]
    stand_in(dataset)
    trainer = build("TCP", "all", "N_CTX", n_ctx, "CTX_INIT", init, options=("DATASET.NAME", dataset))
    embedding, learner = trainer.model.clip.token_embedding, trainer.model.prompt_learner
    prompts, ids = learner.text(torch.empty(0)), tokenize([template.format(name) for name in NAMES])
    assert torch.equal(prompts.ids, ids) and trainer.teacher.templates == [taught]
    assert learner.ctx.shape == (n_ctx, 64)
    if init:
        torch.testing.assert_close(learner.ctx.data, embedding(tokenize("a photo of a")[0, 1:5]))
    torch.testing.assert_close(prompts.ctx, torch.cat([learner.ctx, embedding(ids[0, 1 + n_ctx : 5])]))
    assert [edit.remove for edit in prompts.deep] == [0] * 8 + [4] and prompts.deep[8].add.shape == (6, 4, 64)


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize(
    ("position", "n_text", "n_vision", "dim", "every_layer"),
    [("middle", 3, 2, 32, True), ("end", 2, 1, 64, False), ("front", 1, 4, 64, True), ("middle", 4, 4, 128, True)],
)
def test_upt(position, n_text, n_vision, dim, every_layer, unified, build):
    settings = {"N_CTX_TEXT": n_text, "N_CTX_VISION": n_vision, "PROJECT_DIM": dim, "DEEP": every_layer}
    settings |= {"CLASS_TOKEN_POSITION": position, "UNIFIED": unified}
    trainer = build("UPT", "all", *(item for pair in settings.items() for item in pair))
    clip, learned = trainer.model.clip, dict(trainer.saved_module().named_parameters())
    bound = (6 / (3 * 16 * 16 + 64)) ** 0.5  # of a patch embedding
    for name in [name for name in learned if name.startswith("vpt_embeddings")]:
        assert 0.9 * bound < learned[name].abs().max() <= bound
    generator = torch.manual_seed(3)
    for parameter in learned.values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
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

    logits = clip.logit_scale.exp() * encode_image(clip, prompts) @ text.T
    loss, output = F.cross_entropy(logits, LABELS), trainer.model.output(IMAGES)
    got, parts = trainer.loss(output, LABELS)
    torch.testing.assert_close((got, output.logits), (loss, logits), rtol=1e-4, atol=1e-4)
    assert parts == {}
    ours, expected = (torch.autograd.grad(value, list(learned.values())) for value in (got, loss))
    for name, a, b in zip(learned, ours, expected, strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm() + 1e-6, name
