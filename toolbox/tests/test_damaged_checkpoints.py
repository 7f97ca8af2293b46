"""Damaged and hostile checkpoints: every changed bit is noticed, and what does not fit a run is
refused in one line.
"""

import random
import shutil
import zipfile

import pytest
import torch
from dassl.engine import TrainerX
from dassl.utils import UsageError, load_checkpoint, load_pretrained_weights, resume_from_checkpoint
from tiny_project import make_trainer


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """The output folder of a run of three epochs that was stopped after its second one."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = make_trainer(root, folder)
    trainer.max_epoch = 2
    trainer.train()
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the folder."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def newest(run):
    return run / "prompt_learner/model.pth.tar-2"


def refuses(path, words="is not a whole checkpoint"):
    with pytest.raises(UsageError, match=words) as refusal:
        load_checkpoint(path)
    assert str(path) in str(refusal.value) and str(refusal.value).isprintable()


# Checksums


def test_every_flipped_bit_and_every_cut_is_noticed(newest):
    content = newest.read_bytes()
    assert load_checkpoint(newest)["epoch"] == 2
    bits = random.Random(13).sample(range(len(content) * 8), 100)
    # End of the directory, and seal
    bits += [byte * 8 + byte % 8 for byte in range(len(content) - 93, len(content))]
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        newest.write_bytes(damaged)
        refuses(newest)
    for removed in (1, 22, 64, 70, 93, 1000):
        newest.write_bytes(content[:-removed])
        refuses(newest)


def test_compressed_archive_is_refused_before_it_fills_the_memory(newest, tmp_path):
    with (
        zipfile.ZipFile(newest) as archive,
        zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in archive.infolist():
            bomb.writestr(member.filename, archive.read(member))
    refuses(tmp_path / "a", "it is compressed")


def test_a_full_memory_is_not_called_damage(newest, monkeypatch):
    def load(*args, **options):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
        )

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(MemoryError):
        load_checkpoint(newest)


def test_non_finite_learned_tensors_are_refused_by_name(root, run, newest):
    checkpoint = load_checkpoint(newest)
    checkpoint["state_dict"]["ctx"][1, 2] = float("inf")
    torch.save(checkpoint, newest)
    trainer = make_trainer(root, run)
    prompts = trainer.model.prompt_learner
    for load in (
        trainer.train,
        lambda: TrainerX.load_model(trainer, str(run), epoch=2),
        lambda: resume_from_checkpoint(newest.parent, prompts),
        lambda: load_pretrained_weights(prompts, newest),
    ):
        with pytest.raises(
            UsageError, match="ctx of the (state_dict of the checkpoint|file) .* is not finite"
        ):
            load()


# The file from which a run resumes


@pytest.mark.parametrize(
    "key", ["state_dict", "epoch", "optimizer", "scheduler", "run", "val_result"]
)
@pytest.mark.parametrize("value", ["x", [1]], ids=str)
def test_changed_part_of_a_checkpoint_is_refused_in_one_line(key, value, root, run, newest):
    torch.save(load_checkpoint(newest) | {key: value}, newest)
    with pytest.raises(UsageError, match=str(newest)) as caught:
        make_trainer(root, run).train()
    assert "\n" not in str(caught.value)
