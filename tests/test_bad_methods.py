"""A method's own mistakes end in one line: in its file, its prompts or head, its loss, its adapter, its YAML file."""

import sys

import pytest
import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from drawn import arguments, small_clip
from marks import one_line
from torch import nn

import trainers
from clip import BlockAdapter, WithAdded, adapt
from common.errors import UsageError
from common.start import ROOT
from trainers.base import PromptTrainer
from trainers.base.prompted import PromptedCLIP, normalize
from trainers.base.prompts import TemplatePrompts, check_layer, gaussian
from trainers.base.settings import MethodSettings


def test_a_file_with_a_failing_import_leaves_the_others(tmp_path, monkeypatch, capsys):
    """A syntax error in one method's file ended the runs of all methods."""
    package = tmp_path / "of_a_stranger"
    package.mkdir()
    for name, code in {"a": "x = (", "b": "y = 1\nunknown", "good": "", "__init__": ""}.items():
        (package / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    trainers.import_files([str(package)], "of_a_stranger")
    one, other = capsys.readouterr().err.splitlines()
    assert one.startswith("of_a_stranger/a.py is left out: SyntaxError: ") and one.endswith("(a.py, line 1)")
    assert other == "of_a_stranger/b.py is left out: NameError: name 'unknown' is not defined (b.py, line 2)"
    assert "of_a_stranger.good" in sys.modules


class Sentences(TemplatePrompts):
    """One learned vector that is added to every image feature."""

    def __init__(self, clip, classnames):
        super().__init__("a photo of a {}.", classnames, clip.context_length)
        self.shift = gaussian(clip.visual.output_dim)

    def image(self, tower, learned):
        return normalize(tower.feature + self.shift)


class Correct(PromptTrainer):
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


class Lossy(Correct):
    def loss(self, output, labels):
        return F.cross_entropy(output.logits, labels)


class Remembering(Correct):
    def finish_model(self):
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


class Gridded(Small):
    def mlp(self, x):
        return self.map(x.unflatten(1, (1, 5)).flatten(1, 2))


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


def learning(learner):
    """A method with this prompt learner."""
    return type("Learning", (Correct,), {"Learner": learner})


def adapting(adapter):
    return learning(type("Adapting", (Adapted,), {"Adapter": adapter}))


@pytest.fixture
def own(build, monkeypatch):
    """`own(method, *settings)`: the trainer of a class that is registered for this test."""

    def own(method, *settings, **options):
        monkeypatch.setitem(TRAINER_REGISTRY._obj_map, method.__name__, method)
        epochs = ("OPTIM.MAX_EPOCH", 1)
        return build(method.__name__, "all", *settings, options=epochs, **options)

    return own


@pytest.mark.parametrize("method", [learning(Reading), learning(Adapted)], ids=["read", "adapter"])
def test_a_correct_method_is_trained(method, own):
    own(method).train()


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            Remembering,
            ["Remembering gives other logits than a model that reads its checkpoint, which lacks seen", "Buffer"],
        ),
        (Lossy, ["Lossy.loss returns a Tensor", "`loss, {}`"]),
        (learning(Long), ["Long.image returns features of length 9", "normalize"]),
        (
            learning(lambda self, clip, names: TemplatePrompts("{}", names, 77)),
            ["has nothing to train", "learns = False"],
        ),
        (learning(Unregistered), ["Unregistered.install adds Small.map.weight", "neither trained nor saved"]),
        (learning(UnregisteredAddition), ["UnregisteredAddition.install adds Small.map.weight", "nor saved"]),
        (adapting(Mixing), ["Mixing.mlp mixes tokens", "the fast towers"]),
        (adapting(Dropping), ["Dropping.mlp mixes tokens, or draws", "`is_stochastic`"]),
        (adapting(Gridded), ["Gridded.mlp cannot compute single tokens"]),
    ],
    ids=lambda item: item[0] if isinstance(item, list) else "",
)
def test_a_mistake_of_a_method_ends_in_one_line(method, words, own):
    with one_line(*words):
        own(method).train()


def test_the_check_of_a_checkpoint_draws_no_random_numbers(own, monkeypatch):
    import trainers.base.trainer as module

    found = []
    for check in (module.check_saved, lambda trainer: None):
        monkeypatch.setattr(module, "check_saved", check)
        monkeypatch.setattr(Correct, "test", lambda self: found.append((torch.get_rng_state(), self.model.training)))
        own(Correct).train()
    assert torch.equal(found[0][0], found[1][0])


def test_layer_beyond_the_backbone_is_refused():
    with pytest.raises(UsageError, match=r"FIRST is 2.*give 0 to 1"):
        check_layer(small_clip(), "FIRST", 2)
    check_layer(small_clip(), "FIRST", 1)


def test_the_name_of_a_setting_stands_once_in_an_error():
    class Settings(MethodSettings):
        def check(self):
            raise UsageError("TRAINER.MINE.PREC is wrong", "change it")

    with pytest.raises(UsageError, match=r"^TRAINER.MINE.PREC is wrong: change it$"):
        Settings.from_cfg({}, "MINE")


def test_a_random_text_is_read_in_every_step(own):
    class Random(Sentences):
        def text(self, image_features):
            read.append(self.training)
            return super().text(image_features)

    for random_text, times in ((False, 1), (True, 3)):  # in an epoch of three steps
        read = []
        own(learning(type("Drawn", (Random,), {"random_text": random_text})), output=str(random_text)).train()
        assert read.count(True) == times


def test_a_yaml_file_of_another_method_says_what_it_does_not_set(launch, eurosat, tiny, tmp_path):
    """The sections of its bases count, and its ending does not: a Python file was executed."""
    small = f"_BASE_: {ROOT}/configs/trainers/small.yaml\n"
    mpl, coop = (f"TRAINER:\n  {section}:\n    PREC: fp32\n" for section in ("MPL", "COOP"))
    files = {  # {name: (content, how often the line is printed)}
        "own.yaml": (small + mpl, 1),
        "coop.YAML": (small + coop, 0),
        "below.conf": ("_BASE_: own.yaml\n", 1),
        "both": ("_BASE_: coop.YAML\n" + mpl, 0),
        "code.py": (f'_BASE_: "own.yaml"\nOUTPUT_DIR: open("{tmp_path}/made", "w")\n', 1),  # YAML and Python
    }
    for name, (content, count) in files.items():
        (tmp_path / name).write_text(content)
        options = ["--no-train", "--trainer", "CoOp", "--config-file", tmp_path / name]
        ended = launch(*arguments(eurosat, tiny, tmp_path / "out", options=options))
        line = f"/{name} sets TRAINER.MPL, but CoOp reads TRAINER.COOP (PREC fp16, not fp32): rename the section"
        assert (ended.status, ended.printed.count(line)) == (0, count), ended
        assert "\nCoOp does not read TRAINER.MPL.PROMPT_DEPTH\n" in ended.printed
    assert not (tmp_path / "made").exists()
