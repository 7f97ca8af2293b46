"""Several seeds in one pass of the towers: each computes what it would compute alone."""

import io
import os
import random
import re
import signal
import sys
import threading
import time
import types

import numpy as np
import pytest
import torch
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import set_random_seed
from recorder import CASES, Recorder, assert_close

from common.start import ROOT
from trainers import methods
from trainers.together import Company, NotTogether

pytestmark = pytest.mark.slow

SEEDS = 1, 2
QUICK = "CoOp", "MPL"


def together(recorders, **options):
    work = [lambda member, each=each: each(member, **options) for each in recorders]
    errors = Company(work, [sys.stdout] * len(work)).run()
    for error in filter(None, errors):
        raise error


def cases():
    for case in CASES:
        mark = pytest.mark.slow if case in ("CoCoOp", "PromptSRC") else pytest.mark.thorough
        yield case if case in QUICK else pytest.param(case, marks=mark)


@pytest.mark.parametrize("case", list(cases()))
def test_seeds_train_together_as_alone(case, in_double, deep, eurosat, tmp_path):
    alone, beside = ([Recorder(eurosat, deep, tmp_path / name, seed, case) for seed in SEEDS] for name in "ab")
    for each in alone:
        each(double=True)
    together(beside, double=True)
    for a, b in zip(alone, beside, strict=True):
        assert b.paths == a.paths
        assert all(torch.equal(value, b.start[name]) for name, value in a.start.items())
        assert_close(dict(enumerate(a.logits)), dict(enumerate(b.logits)), 1e-8)
        assert_close(a.end, b.end, 1e-8)
        assert_close(dict(enumerate(a.scores)), dict(enumerate(b.scores)), 1e-8)
        assert torch.equal(a.rng, b.rng)
    assert beside[0].paths != beside[1].paths
    # A step runs the towers once for all; a test without vision prompts runs the image tower once.
    one, other = [call for each in alone[:1] for call in each.calls], [call for each in beside for call in each.calls]
    steps = [name for name, trains, _ in one if trains]
    assert steps and [name for name, trains, _ in other if trains] == steps
    tested, beside_tested = ([count for _, trains, count in calls if not trains] for calls in (one, other))
    assert sum(tested) == len(alone[0].trainer.test_loader.dataset) and set(beside_tested) == set(tested)
    passes = len(SEEDS) if alone[0].trainer.model.prompt_learner.vision() else 1
    assert sum(beside_tested) == sum(tested) * passes


@pytest.mark.parametrize("case", QUICK)
def test_seeds_in_fp32_differ_from_those_alone_by_rounding(case, deep, eurosat, tmp_path):
    alone, beside = ([Recorder(eurosat, deep, tmp_path / name, seed, case) for seed in SEEDS] for name in "ab")
    for each in alone:
        each()
    together(beside)
    for a, b in zip(alone, beside, strict=True):
        assert b.paths == a.paths
        assert_close({"last step": a.logits[-1]}, {"last step": b.logits[-1]}, 1e-3)


def test_seeds_together_share_kept_image_features_with_one_alone(tiny, eurosat, tmp_path):
    options = "CACHE", str(tmp_path / "cache")
    alone = Recorder(eurosat, tiny, tmp_path / "a", 1, "CoOp", options)
    alone()
    kept = list((tmp_path / "cache").iterdir())
    beside = [Recorder(eurosat, tiny, tmp_path / "b", seed, "CoOp", options) for seed in SEEDS]
    together(beside)
    assert len(kept) == 1 and list((tmp_path / "cache").iterdir()) == kept
    # Of the test images each seed reads one, which shows how the machine computes.
    calls = [call for each in beside for call in each.calls]
    assert [images for name, trains, images in calls if name == "encode_image" and not trains] == [1] * len(SEEDS)


# ---------------------------------------------------------------- runs without trainers


class Trainer:
    """The attributes of a trainer that a company reads."""

    def __init__(self):
        self.start_epoch, self.epoch = 0, 0


class Sum:
    """Asks for the sum of what all that ask at once give."""

    def __init__(self, number, training=True, waits=False):
        self.number, self.training, self.waits = number, training, waits

    def fits(self, other):
        return isinstance(other, Sum)

    def answers(self, requests):
        total = sum(request.number for request in requests)
        return [total / request.number for request in requests]

    def of_absent(self):
        return None


def company(*functions):
    return Company(functions, [sys.stdout] * len(functions))


def test_random_numbers_and_stdout_are_those_of_each_run(capsys):
    draws = {}

    def run(seed):
        def function(member):
            member.trainer = Trainer()
            set_random_seed(seed)
            for _ in range(3):
                numbers = random.random(), np.random.rand(), torch.rand(1).item()
                draws.setdefault(seed, []).append(numbers)
                member.ask(Sum(1))
            print("of", seed)

        return function

    before, outputs = torch.get_rng_state(), [io.StringIO() for _ in range(3)]
    assert Company([run(seed) for seed in (1, 2, 3)], outputs).run() == [None] * 3
    assert torch.equal(torch.get_rng_state(), before)
    assert [output.getvalue() for output in outputs] == ["of 1\n", "of 2\n", "of 3\n"]
    for seed, drawn in draws.items():
        set_random_seed(seed)
        assert drawn == [(random.random(), np.random.rand(), torch.rand(1).item()) for _ in range(3)]
    assert capsys.readouterr().out == ""


def test_requests_of_the_least_advanced_run_come_first():
    order = []

    def run(name, start):
        def function(member):
            member.trainer = trainer = Trainer()
            trainer.start_epoch = trainer.epoch = start
            for trainer.epoch in range(start, 3):
                order.append((name, trainer.epoch, member.ask(Sum(1))))

        return function

    assert company(run("a", 0), run("b", 2)).run() == [None, None]
    assert order == [("a", 0, 1), ("a", 1, 1), ("a", 2, 2), ("b", 2, 2)]


def test_an_error_of_one_run_does_not_end_the_others():
    sums = []

    def good(member):
        member.trainer = Trainer()
        sums.extend(member.ask(Sum(1)) for _ in range(2))

    def bad(member):
        member.trainer = Trainer()
        member.ask(Sum(1))
        raise ValueError("bad")

    first, second = company(good, bad).run()
    assert first is None and str(second) == "bad"
    assert sums == [2, 1]


def test_an_error_of_an_answer_reaches_all_who_asked():
    def divide(member):
        member.trainer = Trainer()
        member.ask(Sum(0))

    assert [type(error) for error in company(divide, divide).run()] == [ZeroDivisionError] * 2


def test_an_interrupt_ends_all_runs_cleanly():
    ended, threads = [], threading.active_count()

    def run(number):
        def function(member):
            member.trainer = Trainer()
            try:
                while True:
                    member.ask(Sum(1))
                    if number == 2:
                        os.kill(os.getpid(), signal.SIGINT)  # the main thread receives it
                        time.sleep(0.2)
                        assert ended == []
            finally:
                ended.append(number)

        return function

    with pytest.raises(KeyboardInterrupt):
        company(run(1), run(2), run(3)).run()
    assert ended == [2, 1, 3]
    assert threading.active_count() == threads


# ---------------------------------------------------------------- other trainers


def test_the_method_of_the_documentation_trains_together(in_double, monkeypatch, deep, eurosat, tmp_path):
    code = re.search(r"```python\n# trainers/growing.py\n(.*?)```", (ROOT / "docs/methods.md").read_text(), re.DOTALL)[
        1
    ]
    module = types.ModuleType("trainers.growing")
    module.__package__ = "trainers"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", dict(TRAINER_REGISTRY._obj_map))
    exec(code, vars(module))
    monkeypatch.setitem(CASES, "Growing", ("Growing",))
    test_seeds_train_together_as_alone("Growing", None, deep, eurosat, tmp_path)


def test_a_method_with_its_own_gradients_does_not_train_together(monkeypatch, tiny, eurosat, tmp_path):
    monkeypatch.setattr(methods()["CoOp"], "backward", lambda self, loss, parts: loss.backward())
    with pytest.raises(NotTogether):
        together([Recorder(eurosat, tiny, tmp_path, seed, "CoOp") for seed in SEEDS])


def test_a_linear_probe_of_each_seed_equals_the_seed_alone(monkeypatch, tiny, eurosat, tmp_path):
    monkeypatch.setitem(CASES, "LinearProbe", ("LinearProbe", "C", 1.0))
    alone, beside = ([Recorder(eurosat, tiny, tmp_path / name, seed, "LinearProbe") for seed in SEEDS] for name in "ab")
    for each in alone:
        each()
    together(beside)
    for a, b in zip(alone, beside, strict=True):
        assert_close(a.end, b.end, 1e-3)
        assert b.trainer.test_results["accuracy"] == a.trainer.test_results["accuracy"]
