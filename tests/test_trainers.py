"""All trainers: each of their published settings trains, each resumes bit for bit, each knows its own checkpoints."""

import itertools
from collections import OrderedDict
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from drawn import make_cfg
from open_clip.tokenizer import SimpleTokenizer
from test_checkpoints import published_model, randomised
from torch import nn

import train
from clip import tokenize
from tools.random_clip import random_clip
from trainers.base import PromptedCLIP, PromptError
from trainers.coop import place_names

CONFIGS = Path(train.__file__).parent / "configs"
YAMLS = {f"{file.parent.name}/{file.stem}": file for file in sorted(CONFIGS.glob("trainers/*/*.yaml"))}
METHODS = ("CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC", "MPL")
DEEP = ("VPT", "IVLP", "MaPLe", "PromptSRC", "MPL")
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.manual_seed(0))
FEW = ("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 3)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """So small a model gains nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def vit(backbones):
    """A vision transformer as deep as the published settings need; CoCoOp's network has 16 hidden units on it."""
    return backbones(32, 16, 12, 12, 64, 64, 256)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A ResNet of 64 px."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("resnet") / "rn.pt"
    vision = {"layers": (1, 1, 1, 1), "width": 16, "image_size": 64}
    torch.save(random_clip("RN50", vision, {"width": 64, "layers": 2}, 256).state_dict(), file)
    return file


@pytest.fixture
def build(eurosat, vit, tmp_path):
    """`build("CoOp", "base", "N_CTX", 4, ...)` -> a trainer in fp32; further settings are those of its method."""

    def build(method, classes="all", *settings, backbone=vit, output="run", options=()):
        pairs = {"PREC": "fp32"} | dict(zip(settings[::2], settings[1::2], strict=True))
        settings = [item for key, value in pairs.items() for item in (f"TRAINER.{method.upper()}.{key}", value)]
        options = [*FEW, *settings, "DATASET.SUBSAMPLE_CLASSES", classes, *options]
        set_random_seed(1)
        return build_trainer(make_cfg(method, eurosat, backbone, tmp_path / output, *options))

    return build


def prompts_of(trainer):
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


def differing(a, b):
    """Names of tensors that are not the same, bit for bit."""
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]


def logits(trainer):
    trainer.set_model_mode("eval")
    return trainer.model_inference(IMAGES)


# ---------------------------------------------------------------- published settings


def configured(file, backbone, size, root, output, *overrides, trainer=None):
    argv = ["--root", root, "--backbone", backbone, "--output-dir", output, "--trainer", trainer or file.parent.name]
    argv += ["--dataset-config-file", CONFIGS / "datasets/eurosat.yaml", "--config-file", file]
    argv += ["INPUT.SIZE", (size, size), "DATALOADER.NUM_WORKERS", 0, *overrides]
    return train.setup_cfg(train.parse_arguments([str(argument) for argument in argv]))


@pytest.mark.parametrize("precision", ["fp32", "amp"])
@pytest.mark.parametrize("name", YAMLS)
def test_every_published_setting_learns_and_is_tested(name, precision, vit, resnet, eurosat, tmp_path):
    file = YAMLS[name]
    backbone, size = (resnet, 64) if file.stem.startswith("rn") else (vit, 32)
    section = f"TRAINER.{file.parent.name.upper()}"
    set_random_seed(1)
    trainer = build_trainer(configured(file, backbone, size, eurosat, tmp_path, f"{section}.PREC", precision))
    before = prompts_of(trainer)

    trainer.set_model_mode("train")
    trainer.num_batches = 2
    batches = itertools.chain.from_iterable(itertools.repeat(trainer.train_loader_x))
    for trainer.batch_idx, batch in zip(range(2), batches, strict=False):
        assert np.isfinite(list(trainer.forward_backward(batch).values())).all()
    assert differing(prompts_of(trainer), before) == list(before)

    trainer.set_model_mode("eval")
    images, labels = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    scores = trainer.model_inference(images[:3])
    assert len(labels) == 24 and scores.shape == (3, 6) and scores.dtype == torch.float32 and scores.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_amp_on_a_cpu_multiplies_in_bf16_and_stays_near_fp32(method, build):
    losses, types = {}, {}
    for precision in ("fp32", "amp"):
        trainer = build(method, "all", "PREC", precision)
        for tower in ("visual", "transformer"):
            layer = getattr(trainer.model.clip, tower).get_submodule("transformer" if tower == "visual" else "")
            layer.resblocks[1].mlp.c_fc.register_forward_hook(
                lambda module, given, result, key=(precision, tower): types.setdefault(key, result.dtype)
            )
        trainer.batch_idx, trainer.num_batches = 0, 2
        losses[precision] = trainer.forward_backward({"img": IMAGES, "label": torch.tensor([0, 3, 5])})["loss"]
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert [types["amp", tower] for tower in ("visual", "transformer")] == [torch.bfloat16] * 2
    assert [types["fp32", tower] for tower in ("visual", "transformer")] == [torch.float32] * 2
    assert losses["amp"] != losses["fp32"] and losses["amp"] == pytest.approx(losses["fp32"], rel=0.05)


PUBLISHED = """
DATALOADER:
  TRAIN_X:
    BATCH_SIZE: 4
  TEST:
    BATCH_SIZE: 100
  NUM_WORKERS: 0

INPUT:
  SIZE: (32, 32)
  INTERPOLATION: "bicubic"
  PIXEL_MEAN: [0.48145466, 0.4578275, 0.40821073]
  PIXEL_STD: [0.26862954, 0.26130258, 0.27577711]
  TRANSFORMS: ["random_resized_crop", "random_flip", "normalize"]

OPTIM:
  NAME: "sgd"
  LR: 0.0035
  MAX_EPOCH: 5
  LR_SCHEDULER: "cosine"
  WARMUP_EPOCH: 1
  WARMUP_TYPE: "constant"
  WARMUP_CONS_LR: 1e-5

TRAIN:
  PRINT_FREQ: 20

MODEL:
  BACKBONE:
    NAME: "ViT-B/16"

TRAINER:
  MAPLE:
    N_CTX: 2
    CTX_INIT: "a photo of a"
    PREC: "fp16"
    PROMPT_DEPTH: 9
"""


def test_a_published_yaml_given_by_path_says_what_ours_says(vit, eurosat, tmp_path):
    """Flat, with quotes, a tuple in a string and lists of strings, as people have them."""
    theirs, ours = tmp_path / "their own.yaml", YAMLS["MaPLe/vit_b16_c2_ep5_batch4_2ctx"]
    theirs.write_text(PUBLISHED)
    given, own = (configured(file, vit, 32, eurosat, tmp_path, trainer="MaPLe") for file in (theirs, ours))
    assert yaml.safe_load(given.dump()) == yaml.safe_load(own.dump())
    assert given.TRAINER.MAPLE.PREC == "fp16" and tuple(given.INPUT.SIZE) == (32, 32)
    build_trainer(given)


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("name", "learned"),
    {
        "MPL/vit_b4_c1_add2_rm1": 6_702_336,
        "MaPLe/vit_b16_c2_ep5_batch4_2ctx": 3_555_072,
        "CoOp/vit_b16": 8_192,
        "CoCoOp/vit_b16_c4_ep10_batch1": 35_360,
        "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx": 46_080,
        "IVLP/vit_b16_c2_ep5_batch4_2+2ctx": 9 * 2 * (512 + 768),
        "VPT/vit_b16_c2_ep5_batch4_4": 12 * 4 * 768,
    }.items(),
)
def test_what_is_learned_on_a_vit_b16_has_the_published_size(name, learned, eurosat, tmp_path):
    with torch.device("meta"):  # sizes without numbers
        clip = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16"))
    clip.token_embedding = nn.Embedding.from_pretrained(torch.zeros(clip.vocab_size, 512))
    method = TRAINER_REGISTRY.get(name.split("/")[0])
    trainer = method.__new__(method)  # without data, which the prompts do not need
    trainer.cfg = configured(YAMLS[name], "ViT-B/16", 224, eurosat, tmp_path)
    model = PromptedCLIP(clip, trainer.build_prompts(clip, ["forest", "annual crop land"]))
    assert sum(parameter.numel() for parameter in model.parameters()) == learned


# ---------------------------------------------------------------- resume


class PowerCut(Exception):
    """The end of a run before its time."""


def watched(trainer, cut_at=None):
    """Have the prompts recorded as each epoch of training leaves them, and a power cut in one of the epochs."""
    epochs, run_epoch = [], trainer.run_epoch

    def recorded():
        if trainer.epoch == cut_at:
            raise PowerCut
        run_epoch()
        epochs.append(prompts_of(trainer))

    trainer.run_epoch = recorded
    return epochs


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_cut_off_goes_on_bit_for_bit(method, build):
    settings = ("GPA_MEAN", 2, "GPA_STD", 1) if method == "PromptSRC" else ()
    whole = build(method, "base", *settings, output="whole")
    epochs = watched(whole)
    whole.train()

    cut = build(method, "base", *settings, output="cut")
    first = watched(cut, cut_at=2)
    with pytest.raises(PowerCut):
        cut.train()
    resumed = build(method, "base", *settings, output="cut")
    rest = watched(resumed)
    set_random_seed(7)  # whatever the state of the generators: the checkpoint has its own
    resumed.train()
    assert [differing(a, b) for a, b in zip(epochs, [*first, *rest], strict=True)] == [[]] * 3
    assert differing(prompts_of(whole), prompts_of(resumed)) == []
    assert differing(epochs[0], epochs[2]) == list(epochs[0])
    assert whole.test_results == resumed.test_results

    if method == "PromptSRC":  # the normal density of mean 2 and deviation 1 at epochs 1, 2 and 3
        density = np.exp(-0.5) * np.ones(3)
        density[1] = 1
        for name, value in prompts_of(resumed).items():
            average = sum(w * epoch[name].double() for w, epoch in zip(density / density.sum(), epochs, strict=True))
            assert torch.allclose(value.double(), average, rtol=0, atol=1e-7)
            assert not torch.allclose(value, epochs[-1][name], rtol=0, atol=1e-6)
    else:
        assert differing(prompts_of(resumed), epochs[-1]) == []


# ---------------------------------------------------------------- checkpoints


def publish(trainer, folder, backbone):
    """Write a trainer's prompts as the published code of its method saves them; returns them."""
    prompts = randomised(trainer)
    state = published_model(prompts, backbone, 37)  # buffers of 37 classes
    if trainer.saved_module() is not trainer.model:  # CoOp, CoCoOp: the prompt learner alone
        inner = "module.prompt_learner."
        state = OrderedDict((key.replace(inner, "module."), value) for key, value in state.items() if inner in key)
    if type(trainer).__name__ == "PromptSRC":
        tower = [(key, value) for key, value in state.items() if "image_encoder." in key and "VPT" not in key]
        state |= {key.replace("image_", "prompt_learner.ZS_image_"): value for key, value in tower}
    path = folder / trainer.saved_as / "model.pth.tar-5"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": 5, "val_result": None}, path)
    return prompts


@pytest.mark.parametrize("method", METHODS)
def test_a_published_checkpoint_of_each_method_loads_at_another_class_count(method, build, vit, tmp_path):
    prompts = publish(build(method, "base"), tmp_path / "published", vit)
    trainer = build(method, "all")
    before, scores = prompts_of(trainer), logits(trainer)
    trainer.load_model(str(tmp_path / "published"), epoch=5)
    assert differing(before, prompts) == list(prompts) and differing(prompts_of(trainer), prompts) == []
    assert scores.shape == (3, 6) and not torch.allclose(logits(trainer), scores, atol=1e-3)


def test_contexts_of_other_classes_are_refused(build, vit, tmp_path):
    publish(build("CoOp", "base", "CSC", True), tmp_path / "published", vit)
    with pytest.raises(PromptError, match=r"ctx in .* has shape \(3, 16, 64\), expected is \(6, 16, 64\)"):
        build("CoOp", "all", "CSC", True).load_model(str(tmp_path / "published"), epoch=5)
    with pytest.raises(PromptError, match=r"ctx in .* has shape \(3, 16, 64\), expected is \(16, 64\)"):
        build("CoOp", "base").load_model(str(tmp_path / "published"), epoch=5)


@pytest.mark.parametrize("given", METHODS)
def test_a_checkpoint_of_another_method_is_refused_by_its_name(given, build, vit, tmp_path):
    same = {"IVLP", "PromptSRC"}  # the same prompts under the same names
    settings = ("N_CTX_TEXT", 4, "N_CTX_VISION", 4) if given == "IVLP" else ()  # as many as PromptSRC's
    prompts = publish(build(given, "base", *settings), tmp_path / "published", vit)
    names = "IVLP or PromptSRC" if given in same else given
    for method in METHODS:
        trainer = build(method, "base", *(("N_CTX_TEXT", 4, "N_CTX_VISION", 4) if method == "IVLP" else ()))
        before = prompts_of(trainer)
        if method == given or {method, given} == same:
            trainer.load_model(str(tmp_path / "published"), epoch=5)
            assert differing(prompts_of(trainer), prompts) == []
            continue
        for epoch in (5, None):
            with pytest.raises(PromptError, match=f"is a checkpoint of {names}, not of {method}: .*--trainer {names}"):
                trainer.load_model(str(tmp_path / "published"), epoch=epoch)
        assert differing(prompts_of(trainer), before) == []


# ---------------------------------------------------------------- ResNet


@pytest.mark.parametrize("method", ["CoOp", "CoCoOp", "ZeroshotCLIP"])
def test_methods_without_vision_prompts_run_on_a_resnet(method, build, resnet):
    trainer = build(method, "base", backbone=resnet, options=["INPUT.SIZE", (64, 64), "OPTIM.MAX_EPOCH", 1])
    trainer.train()
    assert trainer.n_test == 12


@pytest.mark.parametrize("method", DEEP)
def test_methods_with_vision_prompts_refuse_a_resnet(method, build, resnet):
    with pytest.raises(PromptError, match=f"{method} needs a vision transformer such as ViT-B/16; .*: choose another"):
        build(method, backbone=resnet, options=["INPUT.SIZE", (64, 64)])


# ---------------------------------------------------------------- CoOp's places


@pytest.mark.parametrize("n_ctx", [1, 4, 5])
def test_class_names_move_among_the_context_vectors(n_ctx):
    names = ["cat", "annual crop land", "sea-lion (adult)", "st. bernard!", "what?!", "x"]
    words, bpe = "X " * n_ctx, SimpleTokenizer()
    placeholder, sos, eot = bpe.encode("X")[0], bpe.sot_token_id, bpe.eot_token_id
    ids = tokenize([f"{words}{name}." for name in names])
    for position, ahead in {"end": n_ctx, "middle": n_ctx // 2, "front": 0}.items():
        rows, slots = place_names(ids, n_ctx, names, position)
        for name, row, places in zip(names, rows.tolist(), slots.tolist(), strict=True):
            # A last mark of the name may share a token with the full stop: "!." is one.
            spelled, length = bpe.encode(f"{name}."), len(bpe.encode(name))
            expected = [placeholder] * ahead + spelled[:length] + [placeholder] * (n_ctx - ahead) + spelled[length:]
            assert row == [sos, *expected, eot] + [0] * (75 - len(expected))
            assert places == [1 + at for at in range(n_ctx + length) if not ahead <= at < ahead + length]
