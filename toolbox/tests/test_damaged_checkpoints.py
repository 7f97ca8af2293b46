"""Damaged and hostile checkpoints: every changed bit is noticed, and everything is checked before it is used."""

import contextlib
import copy
import os
import random
import shutil
import zipfile

import pytest
import torch
from dassl.engine import TrainerX
from dassl.utils import UsageError, load_checkpoint, load_pretrained_weights, resume_from_checkpoint, save_checkpoint
from tiny_project import flat, make_trainer

NAN = torch.tensor([float("nan")])


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
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def newest(run):
    return run / "prompt_learner/model.pth.tar-2"


def refuses(path, words="is not a whole checkpoint"):
    with pytest.raises(UsageError, match=words) as refusal:
        load_checkpoint(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


# ---------------------------------------------------------------- checksums


def test_every_flipped_bit_is_noticed(newest):
    content = newest.read_bytes()
    bits = random.Random(13).sample(range(len(content) * 8), 300)
    bits += [byte * 8 + byte % 8 for byte in range(len(content) - 93, len(content))]  # end of the directory, and seal
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        newest.write_bytes(damaged)
        refuses(newest)
    newest.write_bytes(content)
    assert load_checkpoint(newest)["epoch"] == 2


@pytest.mark.parametrize("removed", [1, 22, 64, 70, 93, 1000])
def test_cut_off_file_is_noticed(newest, removed):
    newest.write_bytes(newest.read_bytes()[:-removed])
    refuses(newest)


@pytest.mark.parametrize("options", [{"weights_only": True}, {"weights_only": False}, {"mmap": True}], ids=str)
def test_torch_itself_loads_a_sealed_file(newest, options):
    ours, theirs = load_checkpoint(newest), torch.load(newest, **options)
    assert ours.keys() == theirs.keys() and torch.equal(ours["state_dict"]["ctx"], theirs["state_dict"]["ctx"])
    with zipfile.ZipFile(newest) as archive:
        assert archive.testzip() is None and archive.comment.startswith(b"sha256:")


def test_flipped_bit_of_a_file_without_checksum_is_noticed_or_changes_nothing(newest):
    """Published checkpoints have none: the CRCs of the archive cover all but padding and dates."""
    expected = torch.load(newest)
    torch.save(expected, newest)
    content = newest.read_bytes()
    with zipfile.ZipFile(newest) as archive:
        members = [(archive.getinfo(name).header_offset, name) for name in archive.namelist()]
        inside = [content.index(archive.read(name), start) for start, name in members]
    chance, accepted = random.Random(13), 0
    for place in [*inside, *chance.sample(range(len(content)), 600)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        newest.write_bytes(damaged)
        if place in inside:
            refuses(newest)
            continue
        with contextlib.suppress(UsageError):
            assert str(flat(load_checkpoint(newest))) == str(flat(expected))
            accepted += 1
    assert 0 < accepted < 300


def test_compressed_archive_is_refused(newest, tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(10**6)}, "epoch": 1}, newest)
    with zipfile.ZipFile(newest) as archive, zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as bomb:
        for member in archive.infolist():
            bomb.writestr(member.filename, archive.read(member))
    refuses(tmp_path / "a", "it is compressed")


def test_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refuses(tmp_path / "pipe", "is not a regular file")
    with pytest.raises(UsageError, match="is not a regular file"):
        load_pretrained_weights(torch.nn.Linear(2, 2), tmp_path / "pipe")


# ---------------------------------------------------------------- tensors


class Subclass(torch.Tensor):
    """torch saves its class by name."""


def with_attribute():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.isfinite = "not a method"
    return parameter


@pytest.mark.parametrize(
    "tensor",
    [
        with_attribute,
        lambda: torch.ones(1).expand(10**12),
        lambda: torch.ones(2, dtype=torch.complex64),
        lambda: torch.ones(2, 2).to_sparse(),
        lambda: torch.ones(2, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        lambda: torch.ones(2).to(torch.float8_e4m3fn),
        lambda: torch.ones(2).as_subclass(Subclass),
    ],
    ids=["attribute", "larger than its data", "complex", "sparse", "meta", "quantized", "float8", "subclass"],
)
def test_other_kinds_of_tensors_are_refused(tensor, tmp_path):
    torch.save({"state_dict": {}, "epoch": 1, "elsewhere": [(1, {"w": tensor()})]}, tmp_path / "a")
    refuses(tmp_path / "a")


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
        with pytest.raises(UsageError, match="ctx of the (state_dict of the checkpoint|file) .* is not finite"):
            load()


# ---------------------------------------------------------------- the rest


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", b"../other/model.pth.tar-1", b"/etc/passwd", b"a\0b", b"\n"])
def test_damaged_file_with_the_name_of_the_newest_checkpoint(content, root, run):
    (run / "prompt_learner/checkpoint").write_bytes(content)
    with pytest.raises(UsageError, match="prompt_learner/checkpoint (does not name a file|names .* does not exist)"):
        make_trainer(root, run).train()


def test_no_file_elsewhere_is_deleted(root, run, newest):
    (run / "mine").write_text("kept")
    checkpoint = load_checkpoint(newest)
    for transient in ("1/../../mine", "../mine"):
        checkpoint["run"]["transient_epochs"] = [transient]
        torch.save(checkpoint, newest)
        with pytest.raises(UsageError, match="transient_epochs is not a list of epochs"):
            make_trainer(root, run).train()
    assert (run / "mine").read_text() == "kept"


def test_no_file_behind_a_link_is_deleted(root, run, tmp_path):
    """A folder of checkpoints that is a link may lead to another run's."""
    other = tmp_path / "other"
    (run / "prompt_learner").rename(other)
    (other / "model.pth.tar-1").write_text("of another run")
    (run / "prompt_learner").symlink_to(other)
    make_trainer(root, run).train()
    assert (other / "model.pth.tar-1").exists()


def test_epoch_beyond_the_last_is_refused(root, run):
    with pytest.raises(UsageError, match="is of epoch 2, but OPTIM.MAX_EPOCH is 1"):
        make_trainer(root, run, "OPTIM.MAX_EPOCH", 1).train()


def test_optimizer_with_a_closure_resumes(tmp_path):
    model = torch.nn.Linear(2, 1)
    optimizers = [torch.optim.LBFGS(model.parameters(), lr=0.1) for _ in range(2)]
    optimizers[0].step(lambda: model(torch.ones(1, 2)).square().sum())
    save_checkpoint({"state_dict": model.state_dict(), "epoch": 1, "optimizer": optimizers[0].state_dict()}, tmp_path)
    assert resume_from_checkpoint(tmp_path, model, optimizers[1]) == 1
    assert optimizers[1].state_dict()["state"].keys() == optimizers[0].state_dict()["state"].keys()


# ---------------------------------------------------------------- mutations

LOOP = []
LOOP.append(LOOP)
HOSTILE = [None, True, -1, 0, 10**9, 10**400, 0.5, -1e308, "", "../../x", b"\xff", [], {}, (), LOOP]
HOSTILE += [float("nan"), float("inf"), NAN, torch.ones(3), torch.ones(2, dtype=torch.int64), torch.zeros(())]
HOSTILE += [torch.ones(2, dtype=torch.complex64), torch.ones(1).expand(10**12), {"x": 1}, [1, 2, 3], {0: {0: 0}}]


def mutations(content):
    """Yields copies of nested dicts, lists and tuples with one entry changed or left out."""
    plain = dict(content) if isinstance(content, dict) else dict(enumerate(content))
    for key, entry in plain.items():
        nested = mutations(entry) if isinstance(entry, dict | list | tuple) else ()
        for changed in (*({**plain, key: value} for value in (*HOSTILE, *nested)), plain.keys() - {key}):
            changed = changed if isinstance(changed, dict) else {other: plain[other] for other in changed}
            yield changed if isinstance(content, dict) else type(content)(changed.values())


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_mutated_checkpoints_are_refused_in_one_line_or_sound(root, tmp_path, monkeypatch, optimizer):
    """A run that accepts one trains on; a learning rate of 10**9 makes it diverge, which has its own error."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    trainer = make_trainer(root, tmp_path, "OPTIM.NAME", optimizer, "OPTIM.MAX_EPOCH", 4, "OPTIM.LR", 0.01)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.scaler.scale(torch.ones(1))
    trainer.max_epoch = 2
    trainer.train()
    path = tmp_path / "prompt_learner/model.pth.tar-2"
    batch, accepted = next(iter(trainer.train_loader_x)), 0
    cases = random.Random(13).sample(list(mutations(load_checkpoint(path))), 250)
    for content in cases:
        torch.save(content, path)
        resumed = make_trainer_like(trainer)
        try:
            epoch = resumed.resume_model_if_exist(str(tmp_path))
            TrainerX.load_model(resumed, str(tmp_path), epoch=2)
        except UsageError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            continue
        accepted += 1
        assert epoch >= 0
        resumed.batch_idx, resumed.num_batches = 0, 1
        with contextlib.suppress(FloatingPointError):
            resumed.forward_backward(batch)
        resumed.save_model(epoch, str(tmp_path / "again"))
    assert 0 < accepted < 100


def make_trainer_like(trainer):
    """A copy of a trainer, faster than another one."""
    loaders = [key for key in vars(trainer) if "loader" in key or key in ("dm", "_writer")]
    return copy.deepcopy(trainer, {id(getattr(trainer, key)): None for key in loaders})
