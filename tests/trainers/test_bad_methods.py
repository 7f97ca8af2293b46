"""A method's own mistakes are found by its test (`assert_method_works`), or end in one line."""

import sys

import pytest
import torch
import torch.nn.functional as F
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from drawn import NEED_SENTENCES
from marks import one_line, thorough_but
from method_checks import assert_method_works
from test_all_methods import QUICK
from torch import nn

import trainers
from clip import BlockAdapter, adapt
from trainers import methods
from trainers.base import Method
from trainers.base.prompted import PromptedCLIP, normalize
from trainers.base.prompts import ContextPrompts, TemplatePrompts, gaussian
from trainers.base.test_time import ViewsMethod


def test_a_file_with_a_failing_import_leaves_the_others(tmp_path, monkeypatch, capsys):
    """A syntax error in one method's file ended the runs of all methods."""
    package = tmp_path / "of_a_stranger"
    package.mkdir()
    for name, code in {"a": "x = (", "b": "y = 1\nunknown", "good": "", "__init__": ""}.items():
        (package / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    trainers.import_files([str(package)], "of_a_stranger")
    one, other = capsys.readouterr().err.splitlines()
    assert one.startswith("of_a_stranger/a.py is left out: SyntaxError: ") and one.endswith(
        "(a.py, line 1)"
    )
    assert (
        other
        == "of_a_stranger/b.py is left out: NameError: name 'unknown' is not defined (b.py, line 2)"
    )
    assert "of_a_stranger.good" in sys.modules


class Sentences(TemplatePrompts):
    """One learned vector that is added to every image feature."""

    def __init__(self, clip, classnames):
        super().__init__("a photo of a {}.", classnames, clip)
        self.shift = gaussian(clip.visual.output_dim)

    def image(self, tower, learned):
        return normalize(tower.feature + self.shift)


class Correct(Method):
    Learner = Sentences

    def build_prompts(self, clip, classnames):
        return self.Learner(clip, classnames)


class Reading(Sentences):
    read = "local"  # one word instead of a tuple

    def image(self, tower, learned):
        return normalize(tower.local.mean(dim=1) + self.shift)


class Remembering(Correct):
    def after_build(self):
        self.model.seen = torch.zeros(())

    def loss(self, output, labels):
        self.model.seen = self.model.seen + 1
        return super().loss(output, labels)

    class Model(PromptedCLIP):
        def logits(self, image_features, text_features):
            return super().logits(image_features, text_features) * (1 + self.seen)


class Small(BlockAdapter):
    def __init__(self, width):
        super().__init__()
        self.map = nn.Linear(width, width)
        nn.init.zeros_(self.map.weight)

    def mlp(self, x):
        return self.map(x)


class Mixing(Small):
    def mlp(self, x):
        return self.map(x - x.mean(dim=1, keepdim=True))


class Dropping(Small):
    def mlp(self, x):
        return self.map(F.dropout(x, 0.5, self.training))


class Adapted(Sentences):
    Adapter = Small

    def __init__(self, clip, classnames):
        super().__init__(clip, classnames)
        self.adapter = self.Adapter(64)

    def install(self, clip):
        adapt(clip.visual, 11, self.adapter)


class Unregistered(Adapted):
    def install(self, clip):
        adapt(clip.visual, 11, Small(64))


class Unused(Sentences):
    def __init__(self, clip, classnames):
        super().__init__(clip, classnames)
        self.unused = gaussian(2, 64)


class Centred(Sentences):
    def image(self, tower, learned):
        features = tower.feature + self.shift
        return normalize(features - features.mean(dim=0))


class Normed(Sentences):
    """Its batch norm has a buffer of integers, which no test reads."""

    def __init__(self, clip, classnames):
        super().__init__(clip, classnames)
        self.norm = nn.BatchNorm1d(clip.visual.output_dim)

    def image(self, tower, learned):
        return normalize(self.norm(tower.feature.float()) + self.shift)


class Overwriting(Correct):
    def after_epoch(self):
        self.model.frozen.visual.proj.data += 1


class Logged(ContextPrompts):
    """Hooks that change nothing."""

    installs = changes_image = False

    def __init__(self, clip, classnames):
        super().__init__(clip, classnames, ["X"], gaussian(1, 64), "end")

    def install(self, clip):
        print("installed")

    def image(self, tower, learned):
        return super().image(tower, learned)


def learning(learner):
    """A method with this prompt learner."""
    return type("Learning", (Correct,), {"Learner": learner})


def adapting(adapter):
    return learning(type("Adapting", (Adapted,), {"Adapter": adapter}))


@pytest.fixture
def own(monkeypatch):
    """`own(method)` registers a class for this test."""

    def own(method):
        monkeypatch.setitem(TRAINER_REGISTRY._obj_map, method.__name__, method)

    return own


TRAINED_APART = {"DPC+CoOp"}  # it starts from a run
OF_WORDS = {
    "ATPrompt": {"ATTRIBUTES": ["color", "size", "shape"]},
    "MMApp": {"INPUT_PROMPTS": "hc"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    thorough_but(
        ("CLIPLoRA", "MPL", "TDA"), sorted(methods().keys() - NEED_SENTENCES - TRAINED_APART)
    ),
)
def test_a_built_in_method_works(name):
    views = {"VIEWS": 4} if issubclass(methods()[name], ViewsMethod) else {}
    plugin, _, base = name.rpartition("+")
    words = OF_WORDS.get(plugin, OF_WORDS.get(base, {}))
    assert_method_works(name, **QUICK.get(base, {}) | views | words)


@pytest.mark.parametrize(
    "method",
    [learning(Reading), learning(Adapted), learning(Logged), learning(Normed)],
    ids=["read", "adapter", "logged", "batch norm"],
)
def test_a_correct_method_works(method, own):
    own(method)
    assert_method_works(method.__name__)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Remembering, "reads the checkpoint has other logits"),
        (learning(Unregistered), "prompt_learner.adapter.map.bias gets no gradient"),
        (learning(Unused), "prompt_learner.unused gets no gradient"),
        (learning(Centred), "other logits alone than in a batch"),
        (Overwriting, "the frozen CLIP is changed"),
        (adapting(Mixing), "the fast towers give other logits"),
        (adapting(Dropping), "the fast towers give other logits"),
    ],
)
def test_a_mistake_of_a_method_is_found(method, words, own):
    own(method)
    with pytest.raises(AssertionError, match=words):
        assert_method_works(method.__name__)


def test_a_hook_of_a_plain_mixin_counts_as_a_hook_of_the_class():
    mixin = type("Views", (), {"parse_batch_train": lambda self, batch: batch})
    mixed = type("Mixed", (mixin, Correct), {})
    assert mixed.reads_views and not Correct.reads_views
    denied = type("Denied", (mixin, Correct), {"reads_views": False})
    assert not denied.reads_views and not type("Child", (denied,), {}).reads_views


def test_class_names_of_a_dataset_of_its_own_are_checked(build, monkeypatch):
    monkeypatch.setattr(
        DATASET_REGISTRY.get("EuroSAT"),
        "classnames",
        property(lambda dataset: ["red", "a\x1b[2J", *"bcde"]),
    )
    with one_line("EuroSAT", "control characters"):
        build("CoOp")


def test_a_run_with_nothing_to_train_is_refused(own, build):
    own(learning(lambda self, clip, names: TemplatePrompts("{}", names, clip)))
    with one_line("has nothing to train", "learns = False"):
        build("Learning")


def test_a_random_text_is_read_in_every_step(own, build):
    class Random(Sentences):
        def text(self, image_features):
            read.append(self.training)
            return super().text(image_features)

    for random_text, times in ((False, 1), (True, 3)):  # in an epoch of three steps
        read = []
        own(learning(type("Drawn", (Random,), {"random_text": random_text})))
        build("Learning", "all", options=("OPTIM.MAX_EPOCH", 1), output=str(random_text)).train()
        assert read.count(True) == times
