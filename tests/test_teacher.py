"""The teacher: its text features are computed once, kept on disk, and never mixed up with those of
another.
"""

import pytest
import torch
from drawn import small_clip

import trainers.base.teacher
from clip import load_backbone, tokenize
from trainers.base.prompted import normalize
from trainers.base.teacher import Teacher, mean_text_features

pytestmark = pytest.mark.slow


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


def test_weights_that_change_in_memory_have_other_features(cache):
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
