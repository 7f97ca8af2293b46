"""Damaged and hostile checkpoints: every changed bit is noticed, and everything is checked before it is used.

Also pickles that torch's weights-only unpickler would accept, or never finish.
"""

import contextlib
import copy
import os
import random
import resource
import shutil
import time
import zipfile
from collections import OrderedDict

import pytest
import torch
from dassl.engine import TrainerX
from dassl.utils import UsageError, load_checkpoint, load_pretrained_weights, resume_from_checkpoint
from dassl.utils.torch_files import MAX_READ
from tiny_project import Call, flat, make_trainer


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


def with_members(path, end, change):
    """Rewrite the member of an archive whose name has this end as `change(content)`."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, change(content) if name.endswith(end) else content)


# Checksums


def test_every_flipped_bit_and_every_cut_is_noticed(newest):
    content = newest.read_bytes()
    assert load_checkpoint(newest)["epoch"] == 2
    bits = random.Random(13).sample(range(len(content) * 8), 300)
    bits += [byte * 8 + byte % 8 for byte in range(len(content) - 93, len(content))]  # end of the directory, and seal
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        newest.write_bytes(damaged)
        refuses(newest)
    for removed in (1, 22, 64, 70, 93, 1000):
        newest.write_bytes(content[:-removed])
        refuses(newest)


@pytest.mark.parametrize("options", [{"weights_only": True}, {"mmap": True}], ids=str)
def test_torch_itself_loads_a_sealed_file(newest, options):
    assert str(flat(load_checkpoint(newest))) == str(flat(torch.load(newest, **options)))
    with zipfile.ZipFile(newest) as archive:
        assert archive.testzip() is None and archive.comment.startswith(b"sha256:")


def test_flipped_bit_of_a_file_without_checksum_is_noticed_or_changes_nothing(newest):
    """Published checkpoints have none: the CRCs of the archive cover all but padding and dates."""
    expected = torch.load(newest)
    torch.save(expected, newest)
    content = newest.read_bytes()
    with zipfile.ZipFile(newest) as archive:
        inside = [content.index(archive.read(info), info.header_offset) for info in archive.infolist()]
    chance, accepted = random.Random(13), 0
    for place in [*inside, *chance.sample(range(len(content)), 200)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        newest.write_bytes(damaged)
        try:
            assert str(flat(load_checkpoint(newest))) == str(flat(expected)) and place not in inside
            accepted += 1
        except UsageError:
            continue
    assert 0 < accepted < 100


def test_archives_of_another_form_are_refused(tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(10**6)}, "epoch": 1}, tmp_path / "sound")
    with zipfile.ZipFile(tmp_path / "sound") as archive, zipfile.ZipFile(tmp_path / "a", "w", 8) as bomb:  # deflated
        for member in archive.infolist():
            bomb.writestr(member.filename, archive.read(member))
    refuses(tmp_path / "a", "it is compressed")
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        for number in range(40_000):
            archive.writestr(f"a/{number:0>20}", b"")
    refuses(tmp_path / "a", "list of members")
    with_members(tmp_path / "sound", "byteorder", lambda content: b"big")
    refuses(tmp_path / "sound", "not little-endian")
    with zipfile.ZipFile(tmp_path / "sound", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("sound/data.pkl", b"N.")
    refuses(tmp_path / "sound", "two members")


# Tensors


def test_other_kinds_of_tensors_are_refused(tmp_path):
    tensor = torch.ones(2, 2)
    with_attribute = torch.nn.Parameter(tensor)
    with_attribute.isfinite = "not a method"
    for other in (with_attribute, tensor * 1j, tensor.to_sparse(), tensor.to("meta"), tensor.to(torch.float8_e4m3fn)):
        torch.save({"state_dict": {}, "epoch": 1, "elsewhere": [(1, {"w": other})]}, tmp_path / "a")
        refuses(tmp_path / "a")


def rebuilt(offset, size, stride, hooks=None):
    """Pickles as a tensor of four numbers, with these arguments of torch's function for it."""
    arguments = torch.ones(4).storage(), offset, size, stride, False, hooks or OrderedDict()
    return Call(torch._utils._rebuild_tensor_v2, *arguments)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_tensor_outside_its_data_is_refused_and_hooks_are_not_loaded(tmp_path):
    parameter = Call(torch._utils._rebuild_parameter, torch.ones(4), False, {0: "hook"})
    for sound in (rebuilt(0, (4,), (1,)), rebuilt(0, (4,), (1,), {0: "hook"}), parameter):
        torch.save(sound, tmp_path / "a")
        tensor = load_checkpoint(tmp_path / "a")
        assert tensor.tolist() == [1, 1, 1, 1] and tensor._backward_hooks is None
    torch.save(rebuilt(0, (2, 1000), (1, 0)), tmp_path / "a")
    refuses(tmp_path / "a", "larger than its data")
    for outside in (rebuilt(1, (4,), (1,)), rebuilt(0, (2, 2), (3, 1)), rebuilt(0, (2**40, 2**40), (0, 0))):
        torch.save(outside, tmp_path / "a")
        refuses(tmp_path / "a")


def test_storage_of_another_size_is_refused(tmp_path):
    tensor = torch.ones(4)
    torch.save(tensor, tmp_path / "a")
    with_members(tmp_path / "a", "data/0", lambda content: content[:-4])
    refuses(tmp_path / "a", "another size")
    torch.save([tensor, tensor[:2]], tmp_path / "a")
    with_members(tmp_path / "a", "data.pkl", lambda content: b"K\x64tq".join(content.rsplit(b"K\x04tq", 1)))
    refuses(tmp_path / "a", "another size")  # the second one has 100 numbers


def test_attributes_of_a_dict_are_refused(tmp_path):
    state = torch.nn.BatchNorm1d(2).state_dict()
    assert state._metadata
    torch.save(state, tmp_path / "a")
    assert list(load_checkpoint(tmp_path / "a")) == list(state)
    state.keys = "not a method"
    torch.save(state, tmp_path / "a")
    refuses(tmp_path / "a", "a dictionary or a tensor with attributes")


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


# Pickles without an end

NESTED = b"K\1" + b"q\0h\0\x86" * 60  # a tuple of two tuples of two tuples ...
MANY_ITEMS = b"}q\0(" + b"".join(b"X\5\0\0\0%05dN" % number for number in range(60_000)) + b"u"
ENDLESS = {  # pickles that torch's weights-only unpickler needs far too much time or memory for
    "key": b"}" + NESTED + b"Ns.",
    "counter": b"ccollections\nCounter\n](" + NESTED + b"e\x85R.",
    "pairs": b"ccollections\nOrderedDict\n](" + NESTED + b"K\1\x86e\x85R.",
    "attributes": b"ctorch.optim\nSGD\n)\x81](" + NESTED + b"K\1\x86eb.",
    "sizes": b"ctorch._utils\n_rebuild_tensor\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0aX\3\0\0\0cpuK\0tQK\0("
    + b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fq\0" + b"h\0" * 900_000 + b"t)tR.",
    "storage": b"(X\7\0\0\0storagectorch\nFloatStorage\n" + NESTED + b"X\3\0\0\0cpuK\4tQ.",
    "view": b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0aX\3\0\0\0cpuK\4(" + NESTED + b"K\0K\1ttQ.",
    "bytearray": b"c__builtin__\nbytearray\n\x8a\5\0\0\0\0\5\x85R.",
    "equal hashes": b"}("
    + b"".join(b"\x8a\x0b" + (n * (2**61 - 1)).to_bytes(11, "little") + b"N" for n in range(100_000))
    + b"u.",
    "attributes again": b"ctorch.optim\nSGD\n)\x81" + MANY_ITEMS + b"b" + b"h\0b" * 300_000,  # cut off
    "copies": MANY_ITEMS + b"\x85q\1ccollections\nCounter\nq\2h\1R" + b"h\2h\1R" * 200_000 + b".",
    "arguments": b"ccollections\nOrderedDict\nq\2(" + b"h\2" * 300_000 + b"tq\1R" + b"h\2h\1R" * 200_000 + b".",
    "many": b"N" + b"\x85" * MAX_READ + b".",
    "memo": b"Nr\xff\xff\xff\x7f}" + NESTED + b"Ns.",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_pickle_without_an_end_is_refused_soon(name, tmp_path):
    torch.save("MARK", tmp_path / "a")
    pickled = b"\x80\x02" + ENDLESS[name]
    with_members(tmp_path / "a", "data.pkl", lambda content: pickled)
    start, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuses(tmp_path / "a", "is not a whole checkpoint|neither a tensor nor a plain value")
    assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000  # KiB


def test_content_that_a_walk_would_not_leave_is_refused(tmp_path):
    shared = []
    for _ in range(60):
        shared = [shared, shared]
    for content in (shared, LOOP, ["a" * 100_000] * 100, [[None] * 10_000] * 1000, {"a": [{"b": shared}]}):
        torch.save({"metadata": content}, tmp_path / "a")
        refuses(tmp_path / "a", "repeats its parts too often")
    torch.save([torch.ones(10_000)] * 100, tmp_path / "a")
    refuses(tmp_path / "a", "repeats its parts too often")
    torch.save(dict.fromkeys(range(20_000)), tmp_path / "a")  # those of a hostile file collide
    refuses(tmp_path / "a", "too many numbers as keys")
    torch.save([torch.ones([1] * 17)], tmp_path / "a")  # of 100,000, each copy takes two megabytes
    refuses(tmp_path / "a", "too many dimensions")


def test_large_pickle_is_read_or_refused_soon(tmp_path):
    """The limit leaves enough for 50,000 class names, but not for more operations than take some seconds."""
    torch.save({"names": [f"class name number {number}" for number in range(50_000)]}, tmp_path / "a")
    assert len(load_checkpoint(tmp_path / "a")["names"]) == 50_000
    torch.save("a" * MAX_READ, tmp_path / "a")
    refuses(tmp_path / "a", "its pickle has more than")


# What a run resumes from


def test_no_file_elsewhere_is_deleted(root, run, newest):
    (run / "mine").write_text("kept")
    checkpoint = load_checkpoint(newest)
    checkpoint["run"]["transient_epochs"] = ["1/../../mine"]
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


def test_run_with_other_settings_is_not_resumed(root, run):
    with pytest.raises(UsageError, match="is of epoch 2, but OPTIM.MAX_EPOCH is 1"):
        make_trainer(root, run, "OPTIM.MAX_EPOCH", 1).train()
    with pytest.raises(UsageError, match="the state_dict of .* does not fit this run .*size mismatch") as caught:
        make_trainer(root, run, "TRAINER.TINYPROMPT.N_CTX", 2).train()
    assert "\n" not in str(caught.value)


# Mutations

LOOP = []
LOOP.append(LOOP)
HOSTILE = [None, True, -1, 0, 10**9, 10**400, 0.5, -1e308, float("nan"), float("inf")]
HOSTILE += ["", "../../x", b"\xff", [], {}, ()]
HOSTILE += [{"x": 1}, [1, 2, 3], {0: {0: 0}}, LOOP, torch.tensor([float("nan")]), torch.ones(3), torch.zeros(())]
HOSTILE += [torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.complex64), torch.ones(1).expand(10**12)]


def mutations(content):
    """Yields copies of nested dicts, lists and tuples with one entry changed or left out."""
    plain = dict(content) if isinstance(content, dict) else dict(enumerate(content))
    for key, entry in plain.items():
        nested = mutations(entry) if isinstance(entry, dict | list | tuple) else ()
        changes = [{**plain, key: value} for value in (*HOSTILE, *nested)]
        for changed in (*changes, {other: plain[other] for other in plain if other != key}):
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
