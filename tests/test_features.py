"""CACHE: outputs of a frozen, unprompted image tower on disk give the same results, and never those of other images."""

import hashlib
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from drawn import METHODS, differing, make_cfg, prompts_of
from marks import thorough_but
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from clip import TOWERS, load_backbone
from clip.digest import as_bytes
from common.errors import UsageError
from trainers import methods
from trainers.base import PromptTrainer
from trainers.base.feature_trainer import FeatureTrainer
from trainers.base.prompted import PromptedCLIP
from trainers.coop import CoOp

pytestmark = pytest.mark.slow

FRESH = ["DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1, "DATALOADER.TEST.BATCH_SIZE", 5]
TEXT_ONLY = {"CoOp", "CoCoOp", "KgCoOp", "ProGrad", "TCP"}
ALL = {"ZeroshotCLIP", "LinearProbe", *METHODS}


@pytest.fixture
def root(eurosat, tmp_path):
    """A copy, as tests change it."""
    return shutil.copytree(eurosat, tmp_path / "data")


@pytest.fixture
def build(root, tiny, tmp_path):
    """`build("CoOp", KEY, VALUE, ...)` -> a trainer with tmp_path/cache as CACHE."""

    def build(method, *options, backbone=tiny, output="run"):
        precision = [f"TRAINER.{methods()[method].section()}.PREC", "fp32"]
        set_random_seed(1)
        cache = ["CACHE", str(tmp_path / "cache")]
        return build_trainer(make_cfg(method, root, backbone, tmp_path / output, *FRESH, *precision, *cache, *options))

    return build


@pytest.fixture
def read_images(monkeypatch):
    """The number of images in each call of the image tower."""
    counts = []
    for tower in TOWERS.values():

        def counted(clip, images, *options, encode=tower.encode_image):
            counts.append(len(images))
            return encode(clip, images, *options)

        monkeypatch.setitem(vars(tower), "encode_image", counted)
    return counts


@pytest.fixture
def kept(tmp_path):
    return lambda: sorted((tmp_path / "cache").glob("*"))


def logits_of(trainer) -> torch.Tensor:
    """The logits of a test pass, as its evaluator receives them."""
    found, process = [], trainer.evaluator.process
    trainer.evaluator.process = lambda logits, labels: (found.append(logits.clone()), process(logits, labels))
    trainer.test()
    trainer.evaluator.process = process
    return torch.cat(found)


def expected(build, method="CoOp", *options, **how) -> torch.Tensor:
    """The logits of a test pass without CACHE."""
    return logits_of(build(method, *options, "CACHE", "", **how))


@pytest.fixture
def mine(monkeypatch):
    """`mine(own)` registers CoOp with these attributes as the method "Mine"."""
    return lambda own: monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Mine", type("Mine", (CoOp,), own))


@pytest.mark.parametrize("method", thorough_but(("CoOp", "CoCoOp", "MPL", "UPT", "CLIPLoRA"), sorted(ALL)))
def test_methods_without_vision_prompts_read_each_image_once(method, build, deep, read_images, kept):
    computed = expected(build, method, backbone=deep)
    assert torch.equal(logits_of(build(method, backbone=deep)), computed)
    read_images.clear()
    trainer = build(method, backbone=deep)
    assert torch.equal(logits_of(trainer), computed)
    assert trainer.n_test == len(computed) == 24
    if method in {"ZeroshotCLIP", *TEXT_ONLY} or issubclass(methods()[method], FeatureTrainer):
        assert read_images == [1]  # the one that shows how the machine computes
        assert len(kept()) == 1
    else:
        assert not kept()


class Adapted(PromptedCLIP):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.shift = nn.Parameter(torch.ones(self.clip.visual.output_dim))

    def of_tower(self, tower):
        return super().of_tower(replace(tower, feature=tower.feature + self.shift))


class Flipped(PromptedCLIP):
    def image_output(self, images):
        return super().image_output(images.flip(-1) if isinstance(images, torch.Tensor) else images)


DEPTHS = ["TRAINER.IVLP.PROMPT_DEPTH_VISION", 0, "TRAINER.IVLP.PROMPT_DEPTH_TEXT", 2]
FILES = {  # a method, its settings, attributes of the user's own, and the number of files with CoOp's
    "usual": ("ZeroshotCLIP", [], {}, 1),
    "no vision prompts": ("IVLP", DEPTHS, {}, 1),
    "adapter": ("Mine", [], {"Model": Adapted}, 1),
    "model": ("Mine", [], {"Model": Flipped}, 2),
}


@pytest.mark.parametrize("case", FILES.values(), ids=FILES)
def test_method_has_its_own_features_if_it_reads_images_itself(case, build, read_images, kept, mine):
    method, options, own, files = case
    mine(own)
    logits_of(build("CoOp"))
    computed = expected(build, method, *options)
    assert torch.equal(logits_of(build(method, *options)), computed)
    read_images.clear()
    assert torch.equal(logits_of(build(method, *options)), computed)
    assert read_images == [1] and len(kept()) == files


@pytest.mark.parametrize(
    "own",
    [
        {"model_inference": lambda self, images: PromptTrainer.model_inference(self, images.flip(-1))},
        {"parse_batch_test": lambda self, batch: (batch["img"].flip(-1), batch["label"])},
    ],
)
def test_new_method_with_its_own_reading_of_images_is_refused(own, build, mine):
    mine(own)
    with pytest.raises(UsageError, match="this method reads the images: unset CACHE"):
        logits_of(build("Mine"))


# The facts that a file depends on


def test_changed_image_under_the_same_name_and_time_is_seen(build, root, kept):
    logits_of(build("CoOp"))
    file = sorted((root / "eurosat/2750").glob("3/test_*.png"))[1]
    before = file.stat()
    image = Image.open(file).copy()
    image.putpixel((5, 5), (1, 2, 3))
    image.save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert torch.equal(logits_of(build("CoOp")), expected(build))
    assert len(kept()) == 2


def one_weight(trainer):
    trainer.model.clip.visual.transformer.resblocks[3].mlp.c_proj.weight[2, 1] += 1e-7


def fp16(trainer):
    trainer.model._clips = 2 * (load_backbone(trainer.cfg.MODEL.BACKBONE.NAME, "fp16").to(trainer.device),)


def other_activation(trainer):
    trainer.model.clip.visual.transformer.resblocks[0].mlp.gelu = nn.GELU()


def other_heads(trainer):
    trainer.model.clip.visual.transformer.resblocks[0].attn.num_heads = 2


OTHER = [one_weight, fp16, other_activation, other_heads]
OTHER += [("INPUT.INTERPOLATION", "bicubic"), ("INPUT.PIXEL_MEAN", [0.4, 0.4, 0.4])]
OTHER += [("INPUT.TRANSFORMS", ("random_flip",)), ("INPUT.EXIF_ORIENTATION", False)]
OTHER += [("DATASET.SUBSAMPLE_CLASSES", "base"), ("DATALOADER.TEST.BATCH_SIZE", 7), ("MODEL.BACKBONE.TOWERS", "plain")]


@pytest.mark.parametrize("other", OTHER, ids=lambda each: getattr(each, "__name__", str(each)))
def test_other_images_transform_batches_towers_or_weights_have_a_file_of_their_own(other, build, kept):
    logits_of(build("CoOp"))
    found = []
    for cache in ((), ("CACHE", "")):
        trainer = build("CoOp", *(() if callable(other) else other), *cache)
        if callable(other):
            other(trainer)
        found.append(logits_of(trainer))
    assert torch.equal(*found)
    assert len(kept()) == 2


def test_shuffled_tests_are_not_kept(build, kept):
    logits_of(build("CoOp", "DATALOADER.TEST.SAMPLER", "RandomSampler"))
    assert not kept()


# Files


def rewrite(file, change, key):
    """A sound file of changed features."""
    features = change(load_file(file)["features"])
    save_file({"features": features}, file, {"key": key, "sha256": hashlib.sha256(as_bytes(features)).hexdigest()})


HARMS = {
    "flip_a_bit": lambda file: file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1])),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "of_another_key": lambda file: rewrite(file, lambda rows: 2 * rows, "f" * 32),  # copied to this name
    "of_fewer_images": lambda file: rewrite(file, lambda rows: rows[:-1].clone(), file.stem[9:]),
    "not_finite": lambda file: rewrite(file, lambda rows: rows * torch.inf, file.stem[9:]),
    "without_facts": lambda file: save_file(load_file(file), file),
    "of_another_project": lambda file: save_file({"weights": torch.ones(3)}, file),
    "not_a_file": lambda file: (file.unlink(), os.mkfifo(file)),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_damaged_or_foreign_file_is_computed_again(harm, build, read_images, kept):
    computed = logits_of(build("CoOp"))
    harm(*kept())
    read_images.clear()
    assert torch.equal(logits_of(build("CoOp")), computed)
    assert sum(read_images) == 1 + 24
    read_images.clear()
    assert torch.equal(logits_of(build("CoOp")), computed)
    assert read_images == [1]


def test_training_is_the_same_when_each_epoch_is_validated(build):
    """A loader that does not run also draws its number from the random generator."""
    learned = []
    for output, cache in (("a", ["CACHE", ""]), ("b", []), ("c", [])):
        trainer = build("CoOp", "TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 3, *cache, output=output)
        trainer.train()
        learned.append(prompts_of(trainer))
    assert differing(*learned[:2]) == differing(*learned[1:]) == []


def test_several_runs_fill_it_at_once(build, kept):
    computed = expected(build)
    trainers = [build("CoOp") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(logits_of, trainers))
    assert all(torch.equal(each, computed) for each in found)
    assert [file.suffix for file in kept()] == [".safetensors"]
    assert torch.equal(logits_of(build("CoOp")), computed)


def test_limit_deletes_what_was_not_used_for_longest(build, kept):
    size, made = 24 * 64 * 4, {}
    for batch in (5, 6, 5, 7):  # 6 is the oldest at the end
        before = set(kept())
        logits_of(build("CoOp", "DATALOADER.TEST.BATCH_SIZE", batch, "CACHE_GB", 2.5 * size / 1e9))
        for file in set(kept()) - before:
            made[batch] = file
        time.sleep(0.02)
    assert set(kept()) == {made[5], made[7]}


def test_unfinished_file_of_another_process_stays_until_it_is_abandoned(build, tmp_path):
    (tmp_path / "cache").mkdir()
    writing, abandoned = (tmp_path / f"cache/.features-{name}.safetensors.1.partial" for name in "ab")
    for file in (writing, abandoned):
        file.touch()
    os.utime(abandoned, (0, 0))
    logits_of(build("CoOp"))
    assert writing.exists() and not abandoned.exists()


def test_features_beyond_the_limit_only_cost_time(build, kept, capsys):
    assert torch.equal(logits_of(build("CoOp", "CACHE_GB", 1e-6)), expected(build))
    assert "raise CACHE_GB" in capsys.readouterr().out and not kept()


def test_unusable_folder_only_costs_time_and_a_file_is_refused(build, tmp_path, capsys):
    folder = tmp_path / "closed/cache"
    trainer = build("CoOp", "CACHE", str(folder))
    folder.parent.write_text("a file, since the start of the run")
    assert torch.equal(logits_of(trainer), expected(build))
    assert "not kept for other runs" in capsys.readouterr().out
    with pytest.raises(UsageError, match="CACHE is .*closed, which is not a folder"):
        build("CoOp", "CACHE", str(folder.parent))


def test_missing_image_is_reported_as_without_it(build, root):
    trainer = build("CoOp")
    sorted((root / "eurosat/2750").glob("*/test_*.png"))[7].unlink()
    with pytest.raises(OSError, match="there is no image"):
        logits_of(trainer)
