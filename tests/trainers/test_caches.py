"""Files of features that runs share: of images (CACHE), and of the texts of a teacher.

They give the same results, and never those of other images, of another model or of a damaged file.
"""

import os
import shutil
import time
from functools import partial

import numpy as np
import pytest
import torch
from caching import OFF, values
from dassl.utils import ChangedImageError
from drawn import small_clip
from PIL import Image
from torch import nn

import trainers.base.teacher
from clip import load_backbone, tokenize
from common.cache import DIGEST, DiskCache
from trainers.base.features import CachedFeatures
from trainers.base.prompted import normalize
from trainers.base.teacher import Teacher, mean_text_features

pytestmark = pytest.mark.slow


def test_changed_image_under_the_same_name_and_time_is_seen(new, copied, kept):
    values(new())
    file = sorted((copied / "eurosat/2750").glob("3/test_*.png"))[1]
    before = file.stat()
    pixels = np.asarray(Image.open(file)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert torch.equal(values(new()), values(new(*OFF)))
    assert len(kept()) == 2


@pytest.mark.parametrize("views", ["", "views"])
def test_images_changed_during_the_computation_of_features_are_refused_and_not_kept(
    views, new, copied, kept, monkeypatch
):
    first, second = (
        next((copied / "eurosat/2750").glob(f"{folder}/test_*.png")) for folder in (3, 4)
    )
    sound = first.read_bytes()
    encode_some = CachedFeatures.encode_some

    def change_and_encode(self, places):
        shutil.copy(second, first)
        encode_some(self, places)

    def read(trainer):
        return (
            trainer.method.features_of(trainer.dm.dataset.test, 2).views
            if views
            else values(trainer)
        )

    new = partial(new.func, "TipAdapter") if views else new
    with monkeypatch.context() as patched:
        patched.setattr(CachedFeatures, "encode_some", change_and_encode)
        with pytest.raises(ChangedImageError, match="changed after its checksum was read"):
            read(new())
    assert kept() == []
    first.write_bytes(sound)
    assert torch.equal(read(new()), read(new(*OFF)))


def one_weight(trainer):
    trainer.model.clip.visual.transformer.resblocks[3].mlp.c_proj.weight[2, 1] += 1e-7


def fp16(trainer):
    clip = load_backbone(trainer.cfg.MODEL.BACKBONE.NAME, "fp16").to(trainer.device)
    vars(trainer.model).update(clip=clip, frozen=clip)


def other_activation(trainer):
    trainer.model.clip.visual.transformer.resblocks[0].mlp.gelu = nn.GELU()


def other_heads(trainer):
    trainer.model.clip.visual.transformer.resblocks[0].attn.num_heads = 2


OTHER = [
    ("INPUT.INTERPOLATION", "bicubic"),
    ("INPUT.EXIF_ORIENTATION", False),
    ("DATASET.SUBSAMPLE_CLASSES", "base"),
]
OTHER += [("INPUT.PIXEL_MEAN", [0.4, 0.4, 0.4]), ("INPUT.TRANSFORMS", ("random_flip",))]
OTHER += [("DATALOADER.TEST.BATCH_SIZE", 7), ("MODEL.BACKBONE.TOWERS", "plain")]
OTHER += [one_weight, fp16, other_activation, other_heads]


@pytest.mark.parametrize("other", OTHER, ids=lambda other: getattr(other, "__name__", str(other)))
def test_other_images_transform_batches_towers_or_weights_have_a_file_of_their_own(
    other, new, kept
):
    values(new())
    found = []
    for cache in ((), OFF):
        reader = new(*(() if callable(other) else other), *cache)
        if callable(other):
            other(reader)
        found.append(values(reader))
    assert torch.equal(*found)
    assert len(kept()) == 2


def test_more_images_cost_only_what_is_new_to_the_bit(new, kept, work):
    """New classes first, then all: full batches have other companions."""
    half = values(new("DATASET.SUBSAMPLE_CLASSES", "new"))
    work.clear()
    found = values(new())
    fresh = sum(work)
    work.clear()
    assert torch.equal(values(new(*OFF)), found)
    assert fresh < sum(work) and len(half) < len(found)
    assert len(kept()) == 2
    work.clear()
    assert torch.equal(values(new()), found) and sum(work) == 1  # noise


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


KEY = "a" * 32
FORM = "float32 (2, 3)"
HARMS = {
    "flipped bit": flip_a_bit,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "not a file": lambda file: (file.unlink(), os.mkfifo(file)),
    "of another key": lambda file: (
        DiskCache(file.parent, "x", "numbers", 100).put("b" * 32, FORM, 24, [bytes(24)])
        and os.replace(file.with_name(f"x-{'b' * 32}.cache"), file)
    ),
    "of another shape": lambda file: DiskCache(file.parent, "x", "", 100).put(
        KEY, "float32 (3, 2)", 24, [bytes(24)]
    ),
    "of another type": lambda file: DiskCache(file.parent, "x", "", 100).put(
        KEY, "int32 (2, 3)", 24, [bytes(24)]
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_changed_cache_file_is_ignored(harm, tmp_path):
    cache = DiskCache(tmp_path, "x", "numbers", 100)
    assert cache.put(KEY, FORM, 24, [bytes(range(12)), bytes(range(12, 24))])
    assert cache.get(KEY, FORM, 24)[:24] == bytes(range(24))
    HARMS[harm](cache.file(KEY))
    assert cache.get(KEY, FORM, 24) is None


def test_a_new_file_is_spared_whatever_the_clock_says(tmp_path):
    cache = DiskCache(tmp_path, "x", "numbers", 1.5 * (24 + DIGEST))
    cache.put("b" * 32, FORM, 24, [bytes(24)])
    os.utime(cache.file("b" * 32), (2 * time.time(),) * 2)  # by the clock of another machine
    assert cache.put(KEY, FORM, 24, [bytes(24)])
    assert list(tmp_path.iterdir()) == [cache.file(KEY)]


def test_limit_deletes_what_was_not_used_for_longest(tmp_path):
    cache = DiskCache(tmp_path, "x", "numbers", 2.5 * (24 + DIGEST))
    mine = tmp_path / "x-of-mine.zip"  # files of the user do not belong to the cache
    mine.write_bytes(bytes(1000))
    first, oldest, last = ("abc"[number] * 32 for number in range(3))
    for key in (first, oldest):
        cache.put(key, FORM, 24, [bytes(24)])
        time.sleep(0.02)
    assert cache.get(first, FORM, 24)
    time.sleep(0.02)
    cache.put(last, FORM, 24, [bytes(24)])
    assert set(tmp_path.iterdir()) == {mine, cache.file(first), cache.file(last)}


def test_unfinished_file_of_another_process_stays_until_it_is_abandoned(tmp_path):
    writing, abandoned = (tmp_path / f".x-{name}.cache.1-1.partial" for name in "ab")
    for file in (writing, abandoned):
        file.touch()
    os.utime(abandoned, (0, 0))
    DiskCache(tmp_path, "x", "numbers", 100).put(KEY, FORM, 24, [bytes(24)])
    assert writing.exists() and not abandoned.exists()


def test_the_limit_and_an_unusable_folder_only_cost_time(tmp_path, capsys):
    (tmp_path / "file").touch()
    for folder, limit in ((tmp_path / "cache", 10), (tmp_path / "file/cache", 100)):
        cache = DiskCache(folder, "x", "numbers", limit, "CACHE_GB")
        assert not cache.put(KEY, FORM, 24, [bytes(24)]) and cache.get(KEY, FORM, 24) is None
        assert "numbers are not kept" in capsys.readouterr().out


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder where teachers are kept, empty at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/modular-prompt-learning"


@pytest.fixture
def computed(cache, monkeypatch):
    """The texts of each time that features are computed."""
    calls = []
    encode = trainers.base.teacher.encode_texts

    def counted(clip, texts, device):
        calls.append(texts)
        return encode(clip, texts, device)

    monkeypatch.setattr(trainers.base.teacher, "encode_texts", counted)
    return calls


def test_training_computes_it_once_and_the_next_run_reads_it(build, computed, cache):
    first = build("PromptSRC", "base", output="first")
    first.test()
    assert computed == []  # a test alone needs no teacher
    first.train()
    second = build("PromptSRC", "base", output="second")
    second.train()
    ((*texts,),) = computed
    assert len(texts) == 60 * 3 and {
        "a bad photo of a red.",
        "a bad photo of a green field.",
    } < set(texts)
    assert torch.equal(first.method.teacher.text_features, second.method.teacher.text_features)
    assert len(list(cache.iterdir())) == 1


def test_other_classes_or_weights_have_a_teacher_of_their_own(build, computed, deep, tmp_path):
    features = [
        build("PromptSRC", classes).method.teacher.text_features for classes in ("base", "new")
    ]
    state = load_backbone(str(deep)).state_dict()
    for number, key in enumerate(["ln_final.bias", "visual.ln_post.bias"]):
        torch.save(state | {key: state[key] + 0.5}, tmp_path / f"{number}.pt")
        features.append(
            build(
                "PromptSRC", "base", backbone=tmp_path / f"{number}.pt"
            ).method.teacher.text_features
        )
    assert len(computed) == 3  # the image tower does not matter
    assert torch.equal(features[3], features[0])
    assert not any(torch.allclose(other, features[0], atol=1e-3) for other in features[1:3])


def test_weights_changed_in_memory_have_other_features(cache):
    clip = small_clip()
    before = mean_text_features(clip, [["red"]])
    with torch.no_grad():
        clip.ln_final.bias += 0.5
    edited = mean_text_features(clip, [["red"]])
    clip.ln_final.bias.data = clip.ln_final.bias.data - 0.5
    replaced = mean_text_features(clip, [["red"]])
    assert not torch.allclose(edited, before, atol=1e-3)
    assert torch.allclose(replaced, before, atol=1e-5)


def test_features_do_not_depend_on_the_precision_of_the_run(build, computed, cache):
    """Autocast products are coarse: kept, they would reach a later run in fp32."""
    exact = build("PromptSRC", "base").method.teacher.text_features
    next(cache.iterdir()).unlink()
    trainer = build("PromptSRC", "base", "PREC", "amp")
    trainer.batch_idx = 0
    trainer.num_batches = 9
    trainer.forward_backward(next(iter(trainer.train_loader_x)))
    assert len(computed) == 2 and torch.equal(trainer.method.teacher.text_features, exact)


def test_any_templates_have_features_of_their_own(build, computed, cache):
    trainer = build("IVLP", "base")
    templates = ("{} texture.", "a photo of {}.")
    clip = trainer.model.clip
    names = trainer.method.class_names
    several = [trainer.method.class_sentences(*chosen) for chosen in (templates, templates[:1])]
    features = [Teacher(trainer.model, texts).text_features for texts in several]
    assert [len(texts) for texts in computed] == [6, 3] and len(list(cache.iterdir())) == 2
    with torch.no_grad():
        texts = [
            clip.encode_text(tokenize([t.replace("{}", name) for name in names]).long())
            for t in templates
        ]
    assert torch.allclose(features[0], normalize(sum(texts) / 2), atol=1e-5)
    assert torch.allclose(features[1], normalize(texts[0]), atol=1e-5)
    of_unit = mean_text_features(clip, several[0], unit=True)
    assert torch.allclose(of_unit, sum(map(normalize, texts)) / 2, atol=1e-5)
