"""One run on several ranks: the same numbers as on one, at any number of them."""

from contextlib import suppress

import pytest
import torch
from in_ranks import in_ranks
from recorder import CASES, Recorder, assert_close

from clip import current_ranks
from experiments.ranks import own_folder

QUICK = "CoCoOp", "MPL", "TCP"
STEPS = "DATALOADER.TRAIN_X.BATCH_SIZE", 3, "DATALOADER.TEST.BATCH_SIZE", 5  # 24 test images: the last batch has 4


class OnRanks:
    """What one of several ranks notes of a run."""

    def __init__(self, *arguments, stop=None):
        each = Recorder(*arguments)
        with own_folder(each.cfg, current_ranks()):
            each.build(double=True)
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
        self.end, self.rng = each.trainer.model.state_dict(), torch.get_rng_state()
        self.results, self.tested = each.trainer.test_results, each.trainer.n_test
        self.images = [images for name, trains, images in each.calls if trains and images]


class Killed(Exception):
    pass


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    "case", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_all_ranks_compute_what_one_computes(case, count, in_double, deep, eurosat, tmp_path):
    arguments = eurosat, deep, tmp_path, 1, case, STEPS
    alone = OnRanks(eurosat, deep, tmp_path / "alone", 1, case, STEPS)
    for each in in_ranks(count, lambda: OnRanks(*arguments)):
        assert each.paths == alone.paths and torch.equal(each.rng, alone.rng)
        assert all(torch.equal(value, each.start[name]) for name, value in alone.start.items())
        assert_close(dict(enumerate(alone.logits)), dict(enumerate(each.logits)), 1e-8)
        assert_close(alone.end, each.end, 1e-8)
        assert (each.results, each.tested) == (alone.results, alone.tested)
        if alone.images and alone.images[0] == 3:  # 3 images are too few for 4 ranks
            assert set(each.images) == ({3} if count == 4 else {2 if each.rank == 0 else 1})


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("method", ["CoOp", pytest.param("PromptSRC", marks=pytest.mark.slow)])
def test_a_run_resumes_on_another_number_of_ranks(method, count, in_double, deep, eurosat, tmp_path):
    steps = *STEPS, "OPTIM.MAX_EPOCH", 3
    alone = OnRanks(eurosat, deep, tmp_path / "alone", 1, method, steps)
    in_ranks(2, lambda: OnRanks(eurosat, deep, tmp_path, 1, method, steps, stop=2))
    for each in in_ranks(count, lambda: OnRanks(eurosat, deep, tmp_path, 1, method, steps)):
        assert 2 * len(each.paths) < len(alone.paths) and each.paths == alone.paths[-len(each.paths) :]
        assert_close(alone.end, each.end, 1e-10)
        assert each.results == alone.results
