"""All trainers: each of their published settings trains, and each has its published size."""

import itertools
import pickle

import numpy as np
import open_clip
import pytest
import torch
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from drawn import METHODS, NEED_SENTENCES, cfg_from, differing, prompts_of, sentences_of
from learned import NAMES
from marks import one_line, tables, thorough_but
from torch import nn

from clip import private_copy
from clip.random_weights import random_clip
from common.start import ROOT
from configs.recipes import recipe
from trainers import methods
from trainers.base import PromptedCLIP
from trainers.base.feature_method import FeatureMethod
from trainers.base.method import Classes
from trainers.base.test_time import ViewsMethod
from trainers.mpl import MPL

CONFIGS = ROOT / "configs"
YAMLS = {
    f"{file.parent.name}/{file.stem}": file for file in sorted(CONFIGS.glob("trainers/*/*.yaml"))
}
ROWS = [row for table in tables((ROOT / "docs/methods.md").read_text()) for row in table]
DOCUMENTED = {
    row[0].split("`")[1]: row[1:] for row in ROWS if len(row) in (4, 6) and row[0].startswith("`")
}
DEEP = [name for name, (_, vision, *_) in DOCUMENTED.items() if vision != "–"]
# A file of each method for `make test`
FIRST = {file.parent.name: name for name, file in reversed(YAMLS.items())}
# One method of each kind; `make test-all` has all settings of all methods
KINDS = "MPL", "CoOp", "MaPLe", "PromptSRC", "CLIPLoRA", "FineTune", "TipAdapterF", "GDA", "ProLIP"
KINDS += "TPT", "TDA", "TransCLIP", "WaffleCLIP"
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.manual_seed(0))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A ResNet of 64 px."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("resnet") / "rn.pt"
    vision = {"layers": (1, 1, 1, 1), "width": 16, "image_size": 64}
    torch.save(random_clip("RN50", vision, {"width": 64, "layers": 9}, 256).state_dict(), file)
    return file


def test_the_registry_gives_back_the_class_of_a_method():
    method = TRAINER_REGISTRY.get("MPL")
    assert method is MPL and pickle.loads(pickle.dumps(method)) is MPL


# ---------------------------------------------------------------- published settings


def configured(file, backbone, size, root, output, *overrides):
    argv = ["--root", root, "--backbone", backbone, "--output-dir", output]
    argv += ["--dataset-config-file", CONFIGS / "datasets/eurosat.yaml", "--config-file", file]
    argv += ["--trainer", file.parent.name, "INPUT.SIZE", (size, size)]
    return cfg_from(*argv, "DATALOADER.NUM_WORKERS", 0, *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("precision", thorough_but(("fp32",), ("fp32", "amp")))
@pytest.mark.parametrize("name", thorough_but([FIRST[name] for name in KINDS], YAMLS))
def test_every_published_setting_learns_and_is_tested(
    name, precision, deep, resnet, eurosat, tmp_path
):
    file = YAMLS[name]
    backbone, size = (resnet, 64) if file.stem.startswith("rn") else (deep, 32)
    method = methods()[file.parent.name]
    if method.__name__ == "SkipTuning" and precision == "amp":
        return  # which it refuses
    options = [f"TRAINER.{method.section()}.PREC", precision]
    if method.__name__ in ("LoCoOp", "DPC+CoOp"):
        options += [f"TRAINER.{method.section()}.TOPK", 2]
    if name == "SkipTuning/vit_b16_bs4_cross_datasets":  # whose first steps vanish in fp32
        options += ["OPTIM.WARMUP_EPOCH", -1, "OPTIM.LR", 0.01, "OPTIM.NEW_LR", 0.01]
    if method.__name__ in ("ProLIP", "RLA"):  # 300 views of each image as published
        options += [f"TRAINER.{method.section()}.AUGMENT_EPOCH", 5]
    if name == "CoCoOp/rn50_c4_ep10_batch1_ctxv1":
        # EuroSAT's sentence has more than four words
        options += ["DATASET.TEMPLATE", "a photo of a {}."]
    if file.parent.name in {*NEED_SENTENCES, "MMApp"}:
        options += ["DATASET.SENTENCES", sentences_of(NAMES, tmp_path)]
    set_random_seed(1)
    trainer = build_trainer(configured(file, backbone, size, eurosat, tmp_path, *options))
    before = prompts_of(trainer)
    if issubclass(method, FeatureMethod):
        trainer.train()
        trained = {
            name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad
        }
        learned = differing(prompts_of(trainer), before)
        assert learned and trained <= set(learned)
    elif method.learns:
        trainer.set_model_mode("train")
        trainer.num_batches = 2
        if method.__name__ == "DPC+CoOp":
            trainer.method.context_of_run = lambda: trainer.model.prompt_learner.ctx.detach()
        loader = trainer.method.batches(trainer.train_loader_x)
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        for trainer.batch_idx, batch in zip(range(2), batches, strict=False):
            values = trainer.forward_backward(batch).values()
            assert all(np.isfinite(float(value)) for value in values)
        named = dict(trainer.model.named_parameters())
        idle = {name for name in before if name not in named or named[name].grad is None}
        assert not idle or method.__name__.startswith(("TwoStage", "ATPrompt+", "HiCroPL", "DPC+"))
        learned = differing(prompts_of(trainer), before)
        assert learned == [name for name in before if name not in idle]

    with pytest.raises(KeyError, match="evaluate"):
        trainer.set_model_mode("evaluate")
    trainer.set_model_mode("eval")
    scores, labels = next(trainer.test_outputs(trainer.test_loader))
    images = 1 if issubclass(method, ViewsMethod) else 24
    assert len(labels) == images and scores.shape == (images, 6)
    assert scores.dtype == torch.float32 and scores.isfinite().all()


@pytest.mark.parametrize("name", ["CLIPLoRA/vit_b16", "TipAdapterF/vit_b16"])
def test_a_schedule_of_its_own_starts_at_the_learning_rate(name, deep, eurosat, tmp_path):
    """It started at the rate of a warm-up that these methods do not have, and stayed below it."""
    trainer = build_trainer(configured(YAMLS[name], deep, 32, eurosat, tmp_path))
    if isinstance(trainer, FeatureMethod):
        trainer.before_train()
    assert trainer.get_current_lr() == trainer.cfg.OPTIM.LR and trainer.cfg.OPTIM.WARMUP_EPOCH == 1


@pytest.mark.parametrize(
    ("name", "epochs", "told"), [("CoOp", 1, 1), ("CoOp", 2, 0), ("CLIPLoRA", 1, 0), ("GDA", 1, 0)]
)
def test_a_warm_up_of_all_epochs_is_printed(name, epochs, told, build, capsys):
    build(name, options=("OPTIM.MAX_EPOCH", epochs, "OPTIM.WARMUP_EPOCH", 1)).before_train()
    assert capsys.readouterr().out.count("the learning rate stays below OPTIM.LR") == told


def test_a_method_with_its_own_loop_gets_the_steps_of_each_part(build):
    """A subclass may override `run_epoch`: the loader has the steps from the start, not only in
    Dassl's loop.
    """
    trainer = build("CLIPLoRA", "base", "N_ITERS", 5)
    found = []
    trainer.run_epoch = lambda: found.append(
        (len(trainer.train_loader_x), len(list(trainer.train_loader_x)))
    )
    trainer.train()
    assert found == [(3, 3), (3, 3), (4, 4)]


def test_clip_lora_learns_from_a_smaller_last_batch(build):
    """As the official code; Dassl leaves it out."""
    trainer = build("CLIPLoRA", "base", options=("DATALOADER.TRAIN_X.BATCH_SIZE", 4))
    images = len(trainer.dm.dataset.train_x)
    batches = [len(batch["label"]) for batch in trainer.dm.train_loader_x]
    assert images % 4 and batches == [4] * (images // 4) + [images % 4]


def test_settings_at_odds_with_the_classes_are_refused_without_train_py(build):
    with one_line("TRAINER.LOCOOP.TOPK is 7, and there are 6 classes"):
        build("LoCoOp", "all", "TOPK", 7).train()


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    thorough_but(
        ("CoOp", "MPL", "CoCoOp", "UPT", "CLIPLoRA", "LoCoOp"),
        [name for name in METHODS if name != "SkipTuning"],
    ),
)
def test_amp_on_a_cpu_multiplies_in_bf16_and_stays_near_fp32(method, build):
    losses = {}
    types = {}
    for precision in ("fp32", "amp"):
        trainer = build(method, "all", "PREC", precision)
        clip = trainer.model.clip
        for tower, transformer in (("image", clip.visual.transformer), ("text", clip.transformer)):

            def note(module, args, result, place=(precision, tower)):
                types.setdefault(place, result.dtype)

            transformer.resblocks[1].attn.out_proj.register_forward_hook(note)
        trainer.batch_idx = 0
        trainer.num_batches = 2
        batch = {"img": IMAGES, "label": torch.tensor([0, 3, 5])}
        losses[precision] = trainer.forward_backward(batch)["loss"]
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    # FineTune's classifier takes the place of the texts
    towers = ("image",) if method == "FineTune" else ("image", "text")
    expected = {"fp32": torch.float32, "amp": torch.bfloat16}
    assert types == {(key, tower): expected[key] for key in expected for tower in towers}
    assert losses["amp"] != losses["fp32"]
    assert losses["amp"] == pytest.approx(losses["fp32"], rel=0.05)


# ---------------------------------------------------------------- sizes


@pytest.fixture(scope="module")
def vit_b16():
    with torch.device("meta"):  # sizes without numbers
        clip = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16"))
    clip.token_embedding = nn.Embedding.from_pretrained(torch.zeros(clip.vocab_size, 512))
    return clip


@pytest.mark.parametrize("name", METHODS)
def test_what_is_learned_on_a_vit_b16_has_the_documented_size(name, vit_b16, eurosat, tmp_path):
    clip = private_copy(vit_b16)
    method = methods()[name]
    file = YAMLS[f"{name}/{recipe(name, 'few_shot').cfg}"]
    on_eurosat = {
        "MMRL": ["TRAINER.MMRL.REP_DIM", 512],
        "CoPrompt": ["TRAINER.COPROMPT.PROMPT_DEPTH", 9],
    }
    options = on_eurosat.get(name, [])  # other values than on most datasets
    names = ["forest", "annual crop land"]
    if name in ("HiCroPL", "MMApp"):
        options = ["DATASET.SENTENCES", sentences_of(names, tmp_path)]
    cfg = configured(file, "ViT-B/16", 224, eurosat, tmp_path, *options)
    classes = Classes(names, sentences={name: ["a text"] for name in names})
    bare = method(cfg, classes, torch.device("cpu"))
    model = PromptedCLIP(clip, bare.build_prompts(clip, names))
    learned = sum(parameter.numel() for parameter in model.parameters())
    assert DOCUMENTED[name][-1].startswith(f"{learned:,} (")


# ---------------------------------------------------------------- ResNet


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in DOCUMENTED if name not in DEEP])
def test_methods_without_vision_prompts_run_on_a_resnet(method, build, resnet):
    trainer = build(
        method, "base", backbone=resnet, options=["INPUT.SIZE", (64, 64), "OPTIM.MAX_EPOCH", 1]
    )
    trainer.train()
    assert trainer.n_test == 12


@pytest.mark.parametrize("method", DEEP[:1])
def test_methods_with_vision_prompts_refuse_a_resnet(method, build, resnet):
    with one_line(f"{method} needs a vision transformer such as ViT-B/16"):
        build(method, backbone=resnet, options=["INPUT.SIZE", (64, 64)])


# ---------------------------------------------------------------- CoOp's positions


def test_a_trainer_is_tested_without_observers_too(build):
    """The published Dassl has none."""
    trainer = build("CoOp")
    del trainer.observers
    trainer.test()
    assert trainer.n_test == 24
