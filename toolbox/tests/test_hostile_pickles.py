"""Pickles in checkpoints that torch's weights-only unpickler would accept, or never finish, are refused."""

import resource
import time
import zipfile
from collections import OrderedDict

import pytest
import torch
from dassl.utils import UsageError, load_checkpoint
from dassl.utils.torch_files import MAX_READ


def refuses(path, words):
    with pytest.raises(UsageError, match=words) as refusal:
        load_checkpoint(path)
    assert str(path) in str(refusal.value) and str(refusal.value).isprintable()


class Rebuilt:
    """Pickles as a tensor of four numbers, or as a parameter, with any other arguments of torch's function for it."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        if len(self.arguments) == 2:
            return torch._utils._rebuild_parameter, (torch.ones(4), *self.arguments)
        return torch._utils._rebuild_tensor_v2, (torch.ones(4).storage(), *self.arguments)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, (4,), (1,), False, OrderedDict()), None),
        ((1, (4,), (1,), False, OrderedDict()), "is not a whole checkpoint"),
        ((0, (2, 2), (3, 1), False, OrderedDict()), "is not a whole checkpoint"),
        ((-1, (4,), (1,), False, OrderedDict()), "is not a whole checkpoint"),
        ((0, (2, 1000), (1, 0), False, OrderedDict()), "larger than its data"),
        ((0, (2**40, 2**40), (0, 0), False, OrderedDict()), "is not a whole checkpoint"),
        ((0, (4,), (1,), False, {0: "hook"}), None),
        ((False, {0: "hook"}), None),
    ],
    ids=["sound", "offset", "stride", "negative", "repeated", "overflow", "hook", "hook of a parameter"],
)
def test_tensor_outside_its_data_is_refused_and_hooks_are_not_loaded(arguments, words, tmp_path):
    torch.save({"w": Rebuilt(*arguments)}, tmp_path / "a")
    if words:
        refuses(tmp_path / "a", words)
    else:
        tensor = load_checkpoint(tmp_path / "a")["w"]
        assert tensor.tolist() == [1, 1, 1, 1] and tensor._backward_hooks is None


def test_storage_of_another_size_is_refused(tmp_path):
    torch.save({"w": torch.ones(4)}, tmp_path / "a")
    with_members(tmp_path / "a", lambda name, content: content[:-4] if name.endswith("data/0") else content)
    refuses(tmp_path / "a", "another size")
    tensor = torch.ones(4)
    torch.save([tensor, tensor[:2]], tmp_path / "a")
    second = lambda content: b"K\x64tq".join(content.rsplit(b"K\x04tq", 1))  # noqa: E731 - 100 numbers
    with_members(tmp_path / "a", lambda name, content: second(content) if name.endswith("data.pkl") else content)
    refuses(tmp_path / "a", "another size")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "content", "words"), [("data.pkl", b"N.", "two members"), ("byteorder", b"big", "not little-endian")]
)
def test_repeated_name_and_big_endian_numbers_are_refused(name, content, words, tmp_path):
    torch.save({"w": torch.ones(4)}, tmp_path / "a")
    if name == "byteorder":
        with_members(tmp_path / "a", lambda member, old: content if member.endswith(name) else old)
    else:
        with zipfile.ZipFile(tmp_path / "a", "a") as archive:
            archive.writestr(f"a/{name}", content)
    refuses(tmp_path / "a", words)


def test_attributes_of_a_dict_are_refused(tmp_path):
    state = torch.nn.BatchNorm1d(2).state_dict()
    assert state._metadata
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "a")
    assert list(load_checkpoint(tmp_path / "a")["state_dict"]) == list(state)
    state.keys = "not a method"
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "a")
    refuses(tmp_path / "a", "a dictionary or a tensor with attributes")


def with_members(path, change):
    """Rewrite an archive with its members changed by ``change(name, content)``."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, change(name, archive.read(name))) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)


NESTED = b"K\1" + b"q\0h\0\x86" * 60  # a tuple of two tuples of two tuples ...
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
    "many": b"N" + b"\x85" * MAX_READ + b".",
    "memo": b"Nr\xff\xff\xff\x7f}" + NESTED + b"Ns.",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_pickle_without_an_end_is_refused_soon(name, tmp_path):
    torch.save("MARK", tmp_path / "a")
    pickled = b"\x80\x02" + ENDLESS[name]
    with_members(tmp_path / "a", lambda name, content: pickled if name.endswith("data.pkl") else content)
    start, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuses(tmp_path / "a", "is not a whole checkpoint|neither a tensor nor a plain value")
    assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000  # KiB


def test_large_pickle_is_read_or_refused_soon(tmp_path):
    """The limit leaves enough for 50,000 class names, but not for more operations than take some seconds."""
    torch.save({"names": [f"class name number {number}" for number in range(50_000)]}, tmp_path / "a")
    assert len(load_checkpoint(tmp_path / "a")["names"]) == 50_000
    torch.save("a" * MAX_READ, tmp_path / "a")
    refuses(tmp_path / "a", "its pickle has more than")


def test_long_list_of_members_is_refused_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        for number in range(40_000):
            archive.writestr(f"a/{number:0>20}", b"")
    refuses(tmp_path / "a", "list of members")
