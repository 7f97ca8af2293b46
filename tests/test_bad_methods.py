"""A method's own mistakes are found by its test (`assert_method_works`), or end in one line."""

import re
import sys

import pytest
import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from drawn import NEED_SENTENCES
from marks import one_line, thorough_but
from test_all_methods import QUICK
from test_method_file import new_process
from torch import nn

import trainers
from clip import BlockAdapter, WithAdded, adapt
from common.errors import UsageError
from datasets.eurosat import EuroSAT
from trainers import methods
from trainers.base import Method
from trainers.base.checks import assert_method_works
from trainers.base.method_file import load_method_file
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


class Long(Sentences):
    def image(self, tower, learned):
        return 9 * normalize(tower.feature + self.shift)


class Loose(Sentences):
    def __init__(self, clip, classnames):
        super().__init__(clip, classnames)
        self.scales = [torch.ones((), requires_grad=True)]

    def image(self, tower, learned):
        return normalize(tower.feature * self.scales[0] + self.shift)


class Remembering(Correct):
    def finish_model(self):
        self.model.seen = torch.zeros(())

    def loss(self, output, labels):
        self.model.seen = self.model.seen + 1
        return super().loss(output, labels)

    class Model(PromptedCLIP):
        def logits(self, image_features, text_features):
            return super().logits(image_features, text_features) * (1 + self.seen)


class Scaled(PromptedCLIP):
    def logits(self, image_features, text_features):
        return 2 * super().logits(image_features, text_features)


class Shifted(PromptedCLIP):
    def of_tower(self, tower):
        return normalize(super().of_tower(tower) + 1)


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


class UnregisteredAddition(Adapted):
    def install(self, clip):
        clip.visual.ln_pre = WithAdded(clip.visual.ln_pre, Small(64).mlp)


class Logged(ContextPrompts):
    """Hooks that change nothing."""

    installs = changes_image = False

    def __init__(self, clip, classnames):
        super().__init__(clip, classnames, ["X"], gaussian(1, 64), "end")

    def install(self, clip):
        print("installed")

    def image(self, tower, learned):
        return super().image(tower, learned)


def denying(fact, base=Adapted):
    return type("Denying", (base,), {fact: False})


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", thorough_but(("CLIPLoRA", "MPL", "TDA"), sorted(methods().keys() - NEED_SENTENCES))
)
def test_a_built_in_method_works(name):
    views = {"VIEWS": 4} if issubclass(methods()[name], ViewsMethod) else {}
    assert_method_works(name, **QUICK.get(name.rpartition("+")[2], {}) | views)


@pytest.mark.parametrize(
    "method",
    [learning(Reading), learning(Adapted), learning(Logged)],
    ids=["read", "adapter", "logged"],
)
def test_a_correct_method_works(method, own):
    own(method)
    assert_method_works(method.__name__)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Remembering, "Remembering gives other logits than a model that reads its checkpoint"),
        (learning(Long), "Long.image returns features of length 9"),
        (learning(Loose), "Loose.scales requires a gradient and is not an nn.Parameter"),
        (learning(Unregistered), "Small.map.weight is not in the prompt learner"),
        (learning(UnregisteredAddition), "Small.map.weight is not in the prompt learner"),
        (adapting(Mixing), "the fast towers give other logits"),
        (adapting(Dropping), "the fast towers give other logits"),
        (learning(denying("changes_image")), "Denying says changes_image = False"),
        (learning(denying("installs")), "Denying says installs = False"),
        (type("M", (Correct,), {"Model": denying("own_logits", Scaled)}), "says own_logits"),
        (type("M", (Correct,), {"Model": denying("own_image", Shifted)}), "says own_image"),
    ],
)
def test_a_mistake_of_a_method_is_found(method, words, own):
    own(method)
    with pytest.raises(AssertionError, match=words):
        assert_method_works(method.__name__)


def test_a_hook_of_a_plain_mixin_is_declared_as_that_of_the_class():
    mixin = type("InOrder", (), {"test_loader": lambda self, loader: loader})
    mixed = type("Mixed", (mixin, Correct), {})
    assert mixed.reads_tests and not Correct.reads_tests
    denied = type("Denied", (mixin, Correct), {"reads_tests": False})
    assert not denied.reads_tests and not type("Child", (denied,), {}).reads_tests


def test_a_mixin_behind_its_base_declares_nothing_that_the_base_hides():
    mixin = type("InOrder", (), {"test_loader": lambda self, loader: loader})
    behind = type("Behind", (Correct, mixin), {})
    assert behind.test_loader is Correct.test_loader and not behind.reads_tests
    denying = type("Denying", (), {"reads_tests": False})
    own = type("Own", (Correct, denying), {"test_loader": mixin.test_loader})
    assert own.reads_tests


MISTAKES = {
    "Wide": "Wide of {file} fails: RuntimeError: Sizes of tensors must match",
    "Tensors": "OfTensors.vision returns a Parameter for a layer: return a list of clip.Edit",
    "NoParts": "NoParts.loss returns a Tensor: return the loss and a dict of parts",
    "Detached": "Detached: the parameter prompt_learner.added gets no gradient",
    "Misspelt": "Misspelt of {file} defines build_prompt, which nothing calls: did you mean build_p",
    "Lacking": "Lacking.Settings of {file} is Few: derive it from ContextSettings",
    "Typed": "TRAINER.TYPED.DEPTH is 'three': give an integer",
}
CODE = """
from dataclasses import dataclass
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from clip import Edit
from trainers.base.prompts import ContextMethod, ContextPrompts, ContextSettings, gaussian
from trainers.base.settings import MethodSettings

class Learner(ContextPrompts):
    width = 64
    def __init__(self, *given):
        super().__init__(*given)
        self.added = gaussian(2, self.width)
    def vision(self):
        return [Edit(add=self.added)]

class OfTensors(Learner):
    def vision(self):
        return [self.added]

class OfDetached(Learner):
    def vision(self):
        return [Edit(add=self.added.detach())]

class WideLearner(Learner):
    width = 65

def registered(kind):
    return TRAINER_REGISTRY.register()(kind)

class Base(ContextMethod):
    Learner = Learner
    def build_prompts(self, clip, classnames):
        return self.Learner(clip, classnames, *self.start(clip, []), "end")

@registered
class Fine(Base):
    pass
@registered
class Wide(Base):
    Learner = WideLearner
@registered
class Tensors(Base):
    Learner = OfTensors
@registered
class Detached(Base):
    Learner = OfDetached
@registered
class NoParts(ContextMethod):
    def loss(self, output, labels):
        return F.cross_entropy(output.logits, labels)
@registered
class Misspelt(ContextMethod):
    def build_prompt(self, clip, classnames):
        return Learner(clip, classnames, *self.start(clip, []), "end")
@dataclass(frozen=True)
class Few(MethodSettings):
    N_CTX: int = 4
@registered
class Lacking(ContextMethod):
    Settings = Few
@dataclass(frozen=True)
class Wrong(ContextSettings):
    DEPTH: int = "three"
@registered
class Typed(ContextMethod):
    Settings = Wrong
"""


@pytest.fixture
def mistakes(tmp_path):
    """A file with a method for each mistake, and a correct one."""
    file = tmp_path / "mistakes.py"
    file.write_text(CODE)
    with new_process():
        load_method_file(file)
        yield file


@pytest.mark.parametrize("name", MISTAKES)
def test_an_error_of_a_method_names_it_and_says_what_to_write(name, mistakes):
    words = MISTAKES[name].format(file=re.escape(str(mistakes)))
    with pytest.raises((AssertionError, UsageError), match=words) as caught:
        assert_method_works(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Fine", "CoOp"])
def test_mistakes_of_a_method_are_not_those_of_others(name, mistakes):
    assert_method_works(name)


def test_class_names_of_a_dataset_of_its_own_are_checked(build, monkeypatch):
    monkeypatch.setattr(
        EuroSAT, "classnames", property(lambda dataset: ["red", "a\x1b[2J", *"bcde"])
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
