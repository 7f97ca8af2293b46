"""One run on several ranks: the same numbers as on one, at any number of them."""

from argparse import Namespace
from contextlib import suppress
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from drawn import make_cfg
from in_ranks import in_ranks
from marks import thorough_but
from recorder import CASES, Recorder, assert_close

from clip import Ranks, SplitTowers, current_ranks
from clip.fast import FAST
from common.errors import UsageError
from experiments.data_card import TESTS, note_test
from experiments.ranks import check_agreement
from trainers.base.data_use import digest_of_splits
from trainers.base.ranks import split

pytestmark = pytest.mark.slow

DTYPES = torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool
STEPS = "DATALOADER.TRAIN_X.BATCH_SIZE", 3, "DATALOADER.TEST.BATCH_SIZE", 5  # 24 test images: the last batch has 4


class Killed(Exception):
    pass


class Trained:
    """What one of several ranks notes of a run in fp64, which may stop after an epoch."""

    def __init__(self, *arguments, stop=None):
        each = Recorder(*arguments, double=True)
        if stop:
            after_epoch = each.trainer.after_epoch

            def killed_after_epoch():
                after_epoch()
                if each.trainer.epoch + 1 == stop:
                    raise Killed

            each.trainer.after_epoch = killed_after_epoch
        with suppress(Killed):
            each.trainer.train()
        self.rank, self.paths, self.logits, self.start = current_ranks().rank, each.paths, each.logits, each.start
        self.end, self.rng, self.images = each.trainer.model.state_dict(), torch.get_rng_state(), each.images
        self.results, self.tested = each.trainer.test_results, each.trainer.n_test


@pytest.fixture
def record(deep, eurosat, tmp_path):
    """`record(case, options, seed=)` -> a `Recorder` with a folder of its own on each rank."""

    def record(case, options=(), seed=1):
        return Recorder(eurosat, deep, tmp_path / str(current_ranks()), case, options, seed)

    return record


@pytest.fixture
def train(in_double, deep, eurosat, tmp_path):
    """`train(case, options, output=, stop=)` -> a `Trained`."""
    return lambda case, options, output="out", **how: Trained(eurosat, deep, tmp_path / output, case, options, **how)


def cases():
    for case, count in product(CASES, (2, 4)):
        yield pytest.param(case, count, marks=() if (case, count) == ("MPL", 2) else pytest.mark.thorough)


@pytest.mark.parametrize(("case", "count"), list(cases()))
def test_all_ranks_compute_what_one_computes(case, count, train):
    alone = train(case, STEPS, "alone")
    for each in in_ranks(count, lambda: train(case, STEPS)):
        assert each.paths == alone.paths and torch.equal(each.rng, alone.rng)
        assert all(torch.equal(value, each.start[name]) for name, value in alone.start.items())
        assert_close(dict(enumerate(alone.logits)), dict(enumerate(each.logits)), 1e-8)
        assert_close(alone.end, each.end, 1e-8)
        assert (each.results, each.tested) == (alone.results, alone.tested)
        if alone.images and alone.images[0] == 3:  # 3 images are too few for 4 ranks
            assert set(each.images) == ({3} if count == 4 else {2 if each.rank == 0 else 1})


@pytest.mark.parametrize("count", thorough_but((2,), (1, 2)))
@pytest.mark.parametrize("method", thorough_but(("CoOp",), ("CoOp", "PromptSRC")))
def test_a_run_resumes_on_another_number_of_ranks(method, count, train):
    steps = *STEPS, "OPTIM.MAX_EPOCH", 3
    alone = train(method, steps, "alone")
    in_ranks(2, lambda: train(method, steps, stop=2))
    for each in in_ranks(count, lambda: train(method, steps)):
        assert 2 * len(each.paths) < len(alone.paths) and each.paths == alone.paths[-len(each.paths) :]
        assert_close(alone.end, each.end, 1e-10)
        assert each.results == alone.results


@pytest.mark.parametrize("method", thorough_but(("KgCoOp",), ("KgCoOp", "MMRL")))
def test_more_ranks_than_classes_and_images_in_a_step(method, train):
    few = "DATASET.SUBSAMPLE_CLASSES", "base", "DATALOADER.TRAIN_X.BATCH_SIZE", 2
    alone = train(method, few, "alone")
    for each in in_ranks(4, lambda: train(method, few)):
        assert_close(alone.end, each.end, 1e-8)
        assert each.results == alone.results


def test_different_facts_are_refused_on_all_ranks():
    checksum = "x" * 64
    cases = {
        None: [{"LR": 1}, {"LR": 1}, {"LR": 1}],
        "LR of rank 2 differs (2) from rank 0 (1)": [{"LR": 1}, {"LR": 1}, {"LR": 2}],
        "c of rank 1 differs (None) from rank 0 (5)": [{"a": 1, "b": None, "c": 5}, {"a": 1}, {}],
        "images of rank 2 differs from rank 0": [{"images": checksum}, {"images": checksum}, {"images": "y"}],
    }

    def refused(facts):
        try:
            current_ranks().agree(facts[current_ranks().rank])
        except UsageError as error:
            return error.what

    assert in_ranks(3, lambda: [refused(facts) for facts in cases.values()]) == [list(cases)] * 3


def test_ranks_with_other_images_are_refused(record):
    def build():
        each = record("CoOp", seed=1 + current_ranks().rank)
        each.trainer.cfg.defrost()
        each.trainer.cfg.SEED = 1
        with pytest.raises(UsageError, match="choice of images of rank 1 differs from rank 0"):
            check_agreement(Namespace(), each.trainer.cfg, each.trainer)

    in_ranks(2, build)


def test_a_test_is_noted_by_the_first_rank_alone(record, tmp_path):
    def noted():
        trainer = record("CoOp").trainer
        trainer.cfg.defrost()
        trainer.cfg.OUTPUT_DIR = str(tmp_path)
        note_test(trainer.cfg, trainer, {"accuracy": 50.0})

    in_ranks(2, noted)
    assert len((tmp_path / TESTS).read_text().splitlines()) == 1


def test_the_images_of_a_split_count_in_their_order():
    images = [SimpleNamespace(impath=f"/data/{name}", label=0, classname="a") for name in "xy"]
    one, other = (SimpleNamespace(train_x=each, val=None, test=images) for each in (images, images[::-1]))
    assert digest_of_splits(one, "/data") != digest_of_splits(other, "/data")


def test_learned_pixels_have_their_gradient(record):
    def gradient():
        trainer = record("MPL").trainer
        trainer.model.train()
        torch.manual_seed(0)
        images = torch.randn(4, 3, 32, 32).to(trainer.device).requires_grad_()
        trainer.model(images).logsumexp(dim=1).sum().backward()
        return images.grad

    (alone,) = in_ranks(1, gradient)
    for each in in_ranks(2, gradient):
        torch.testing.assert_close(each, alone, rtol=1e-3, atol=1e-5)


def test_token_ids_are_forgotten_with_their_prompts():
    towers = SplitTowers(FAST, Ranks(0, 2), torch.nn.Module())
    ids = torch.arange(8).view(4, 2)
    assert torch.equal(towers._own_rows(ids), ids[:2]) and towers._own_rows(ids) is towers._own_rows(ids)
    del ids
    assert len(towers._rows) == 0


def test_what_cannot_be_split_is_refused(record, deep, eurosat, tmp_path):
    trainer = record("CoOp").trainer
    trainer.cfg = make_cfg("CoOp", eurosat, deep, tmp_path, "SEED", -1)
    with pytest.raises(UsageError, match="--seed is missing: several ranks need it"):
        split(trainer, Ranks(0, 2))
    trainer.model.clip.ln_final.weight.requires_grad_(True)
    with pytest.raises(UsageError, match="CoOp learns inside the towers"):
        split(trainer, Ranks(0, 2))
    with pytest.raises(UsageError, match="is not a prompt method"):
        split(object(), Ranks(0, 2))


def test_a_linear_probe_is_fitted_on_every_rank_alike(record, monkeypatch):
    monkeypatch.setitem(CASES, "LinearProbe", ("LinearProbe", "C", 1.0))

    def fitted():
        trainer = record("LinearProbe", STEPS).trainer
        trainer.train()
        return trainer.model.state_dict(), trainer.test_results

    (alone,) = in_ranks(1, fitted)
    for end, results in in_ranks(2, fitted):
        assert_close(alone[0], end, 2e-2)  # L-BFGS stops at a gradient of 1e-4
        assert results == alone[1]


@pytest.mark.parametrize("dtype", thorough_but((torch.bfloat16,), DTYPES))
def test_rows_of_all_ranks_arrive_bit_for_bit(dtype):
    sizes = [3, 0, 2]
    every = (torch.arange(20).view(5, 2, 2) % 7).to(dtype)
    own = every.split(sizes)

    def gathered():
        ranks = current_ranks()
        return ranks.gather(own[ranks.rank], sizes), ranks.gather(every[:, :0], sizes)

    for rows, nothing in in_ranks(3, gathered):
        assert torch.equal(rows, every) and rows.dtype == dtype and nothing.shape == (5, 0, 2)


@pytest.mark.parametrize("precision", thorough_but(("amp",), ("fp16", "bf16", "amp")))
def test_every_precision_computes_as_on_one_rank(precision, record, monkeypatch):
    monkeypatch.setattr("trainers.base.build.usable", lambda wanted, device: wanted)  # also fp16, on a CPU

    def losses():
        trainer = record("MPL", [*STEPS, "TRAINER.MPL.PREC", precision]).trainer
        trainer.model.train()
        batch = next(iter(trainer.train_loader_x))
        trainer.batch_idx, trainer.num_batches = 0, 2
        return [trainer.forward_backward(batch)["loss"] for _ in range(2)]

    (alone,) = in_ranks(1, losses)
    first, second = in_ranks(2, losses)
    assert first == second == pytest.approx(alone, rel=0.02)
