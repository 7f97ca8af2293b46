"""Archives are read without running code in them; damaged and hostile ones are refused in one line with their name."""

import os
import resource
import struct
import zipfile
from pathlib import Path
from random import Random

import pytest
import torch
from weight_files import NESTED, NUMBERS, Hostile, Stored, pickled, refused, text, write

from clip import weights
from clip.torch_files import MAX_READ
from clip.weights import MAX_TENSORS
from common.start import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def test_setstate_of_a_torchscript_archive_does_not_run(tmp_path):
    (tmp_path / "written").write_bytes(b"precious content")
    torch.jit.script(Hostile(str(tmp_path / "written"))).save(tmp_path / "vit.pt")
    refused(tmp_path / "vit.pt", "more than tensors", "not run")
    assert (tmp_path / "written").read_bytes() == b"precious content"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["os.mkdir", "builtins.eval", "torch.from_file", "torch.load", "torch.jit.load"])
def test_functions_in_a_pickle_are_not_called(name, legacy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = b"\x80\x02c" + text(*name.rsplit(".", 1)) + b"X\4\0\0\0made\x85R."
    Path("vit.pt").write_bytes(call * 5) if legacy else write(Path("vit.pt"), call)
    refused(tmp_path / "vit.pt", "is damaged or holds more than tensors", name)
    assert os.listdir(tmp_path) == ["vit.pt"]


def test_nothing_calls_torch_jit_load():
    rooms = {file.parent for file in ROOT.glob("[a-z]*/*.py")} | {ROOT / "toolbox"}
    for file in [*ROOT.glob("*.py"), *(file for room in rooms for file in room.rglob("*.py"))]:
        assert file == Path(__file__) or "jit.load" not in file.read_text(), file


def test_crafted_archive_is_read(tmp_path):
    for folder in ("any name/", "é/"):
        write(tmp_path / "vit.pt", {"a": Stored(), "b": Stored(offset=1, size=(1, 2), stride=(9, 2))}, folder=folder)
        state = weights.read_state_dict(tmp_path / "vit.pt")
        assert state["a"].tolist() == [1, 2, 3, 4] and state["b"].tolist() == [[2, 4]]
    write(tmp_path / "vit.pt", MODULE + b"X\1\0\0\0th\1sbq\2h\3)\x81}X\1\0\0\0ah\2sb.")  # in an object
    assert weights.read_state_dict(tmp_path / "vit.pt")["a.t"].tolist() == [1, 2, 3, 4]


OUTSIDE = [Stored(size=(5,)), Stored(offset=-1, size=(1,)), Stored(stride=(-1,)), Stored(length=5, size=(5,))]
OUTSIDE += [Stored(size=(2**40,), stride=(0,)), Stored(size="4"), Stored(length=-4), Stored(length=2**62)]
OUTSIDE += [Stored(length="4"), Stored(key="1"), Stored(key=0)]
OUTSIDE += [Stored(kind=kind) for kind in (torch.DoubleStorage, torch.ComplexFloatStorage)]
TWO_KINDS = Stored(), Stored(kind=torch.DoubleStorage, length=2, size=(2,))  # of one storage


@pytest.mark.parametrize(
    "tensors",
    [*((tensor,) for tensor in OUTSIDE), TWO_KINDS],
    ids=lambda tensors: repr((*tensors[-1].identity[1:], *tensors[-1].layout[:3]))[:70],
)
def test_tensor_outside_its_storage_is_refused(tensors, tmp_path):
    write(tmp_path / "vit.pt", {str(number): tensor for number, tensor in enumerate(tensors)})
    refused(tmp_path / "vit.pt", "is damaged", read=weights.read_state_dict)


def test_tensors_larger_than_the_file_are_refused(tmp_path):
    write(tmp_path / "vit.pt", {f"a{number}": Stored() for number in range(500)} | {"state_dict": {}})
    assert weights.read_state_dict(tmp_path / "vit.pt") == {}
    write(tmp_path / "vit.pt", {str(number): Stored(size=(1,)) for number in range(MAX_TENSORS + 1)})
    refused(tmp_path / "vit.pt", "too many")
    shared = Stored(length=1 << 20, size=(1 << 20,))
    write(tmp_path / "vit.pt", {"a": shared, "b": shared}, numbers=bytes(1 << 22))
    refused(tmp_path / "vit.pt", "larger than the file")
    write(tmp_path / "vit.pt", {"a": shared}, numbers=bytes(1 << 22), how=zipfile.ZIP_DEFLATED)
    refused(tmp_path / "vit.pt", "larger than the file")
    small, large = Stored(key="1"), {"exp_avg": shared}  # in a training checkpoint
    zeros = {"numbers": bytes(1 << 22), "how": zipfile.ZIP_DEFLATED}
    write(tmp_path / "vit.pt", {"state_dict": {"a": small}, "optimizer": large}, ("data/1", NUMBERS), **zeros)
    refused(tmp_path / "vit.pt", "larger than the file")


def many_members(path: Path) -> None:
    """Only the end of the archive, which says how long the list of its members is."""
    length = MAX_READ + 1
    path.write_bytes(b"PK\3\4" + bytes(length) + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, length, 4, 0))


ARCHIVES = {
    "repeated_name": (lambda path: write(path, {"a": Stored()}, ("data/0", NUMBERS)), "two members"),
    "name_outside": (lambda path: write(path, {"a": Stored()}, ("../../x", b"")), "outside of its folder"),
    "big_endian": (lambda path: write(path, {"a": Stored()}, ("byteorder", b"big")), "not little-endian"),
    "no_pickle": (lambda path: write(path, {"a": Stored()}, folder="a/b/"), "is damaged"),
    "bomb": (lambda path: write(path, b"\x80\x02" + b"N0" * 2**24 + b".", how=zipfile.ZIP_DEFLATED), "too large"),
    "large_pickle": (lambda path: write(path, bytes(MAX_READ + 1)), "too large"),
    "dimensions": (lambda path: write(path, {"a": Stored(size=[1] * 17, stride=[1] * 17)}), "too many dimensions"),
    "numbers_as_keys": (lambda path: write(path, {"a": dict.fromkeys(range(20_000))}), "numbers as keys"),
    "many_members": (many_members, "list of members"),
    "empty": (lambda path: zipfile.ZipFile(path, "w").close(), "is damaged"),
    "header_only": (lambda path: path.write_bytes(b"PK\3\4"), "is damaged"),
    "cut": (lambda path: (write(path, {"a": Stored()}), path.write_bytes(path.read_bytes()[:-30])), "is damaged"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("name", ARCHIVES)
def test_damaged_archive_is_refused_in_one_line(name, tmp_path):
    make, words = ARCHIVES[name]
    make(tmp_path / "vit.pt")
    refused(tmp_path / "vit.pt", words, read=weights.read_state_dict)


def test_every_changed_bit_of_a_tensor_or_of_the_pickle_is_noticed(tmp_path, random_seed):
    rng, path, pickle = Random(random_seed), tmp_path / "vit.pt", pickled({"a": Stored()})
    write(path, pickle)
    content = path.read_bytes()
    for _ in range(30):
        part, changed = rng.choice([pickle, NUMBERS]), bytearray(content)
        changed[content.index(part) + rng.randrange(len(part))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        refused(path, "Bad CRC-32", read=weights.read_state_dict)


# Memo 3 is a class of TorchScript, 1 a tensor, 0 an object of the class, whose dictionary of attributes is on top.
MODULE = b"\x80\x02(" + pickled(Stored()).replace(b"q", b"r\0\0\x01")[2:-1] + b"q\1"
MODULE += b"c" + text("__torch__", "M") + b"q\3)\x81q\0}"
PICKLES = {
    "many_operations": b"\x80\x02" + b"]" * (MAX_READ - 10) + b".",
    "large_memo_index": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "deep": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "long_text": b"\x80\x02X\xff\xff\xff\x7fa.",
    "key_of_nested_tuples": b"\x80\x02}" + NESTED + b"Ns.",
    "storage_of_nested_tuples": b"\x80\x02(X\7\0\0\0storagec" + text("torch", "FloatStorage") + NESTED + b"NK\4tQ.",
    "type_of_nested_tuples": b"\x80\x02(X\7\0\0\0storage" + NESTED + b"X\1\0\0\0aNK\4tQ.",
    "keys_with_one_hash": b"\x80\x02}(" + b"".join(
        b"\x8a\x0b" + (number * (2**61 - 1)).to_bytes(11, "little") + b"N" for number in range(100_000)) + b"u.",
    "own_module": MODULE + b"X\1\0\0\0th\1s(X\1\0\0\0ah\0ub.",
    "doubling_modules": MODULE + b"X\1\0\0\0th\1sb"
    + b"".join(b"q\2h\3)\x81}(X\1\0\0\0ah\2X\1\0\0\0bh\2ub" for _ in range(64)) + b".",
    "many_empty_modules": b"\x80\x02c" + text("__torch__", "M") + b"q\3)\x81q\0h\3)\x81q\1}q\2("
    + b"".join(b"X\5\0\0\0%05dh\0" % number for number in range(60_000)) + b"uh\1"
    + b"h\2b" * 400_000 + b".",
    "long_name": MODULE + b"(" + b"".join(b"X\4\0\0\0%04dh\1" % number for number in range(4000)) + b"ubq\2"
    + b"h\3)\x81}X\0\0\x10\0" + b"a" * (1 << 20) + b"h\2sb.",
    "module_with_a_list": MODULE[:-1] + b"]b.",
    "attributes_of_a_name": b"\x80\x02c" + text("torch", "Size") + b"}X\1\0\0\0aNsb.",
    "control_characters": b"\x80\x02c" + text("\x1b[2J", "\r") + b")R.",
    "surrogates": b"\x80\x02}X\3\0\0\0\xed\xa0\x80Ns.",
    "text_as_storage": b"\x80\x02X\1\0\0\0aQ.",
    "set_of_nested_tuples": b"\x80\x04\x8f(" + NESTED + b"\x90.",
    "large_bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b".",
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", PICKLES)
def test_hostile_pickle_is_refused_in_one_line(name, legacy, tmp_path):
    if legacy:
        (tmp_path / "vit.pt").write_bytes(PICKLES[name] * 5)
    else:
        write(tmp_path / "vit.pt", PICKLES[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "vit.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


@pytest.mark.slow
def test_damaged_legacy_file_is_refused(tmp_path):
    path, numbers = tmp_path / "vit.pt", torch.arange(4.0)
    torch.save({"a": torch.ones(1).expand(2**40)}, path, _use_new_zipfile_serialization=False)
    refused(path, "larger than the file")
    torch.save({"a": numbers, "b": numbers[1:3]}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert weights.read_state_dict(path)["b"].tolist() == [1, 2]
    key = str(numbers.untyped_storage()._cdata).encode()
    first, last = content.index(key), content.rindex(key)
    assert first < last and content[-24:-16] == struct.pack("<Q", 4)
    for changed in (
        *(content[:length] for length in range(len(content))),
        content[:-24] + struct.pack("<Q", 5) + content[-16:],
        content[:last] + b"x" + content[last + 1 :],  # the list of storages has another one
        content[:first] + b"x" + content[first + 1 :],
        content.replace(b"FloatStorage", b"DoubleStorage", 1),
        content.replace(b"K\x04Nt", b"K\x04\x88t", 1),  # a view of a storage, of version 0.3
        content.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
    ):
        assert changed != content
        path.write_bytes(changed)
        refused(path, "is damaged", read=weights.read_state_dict)
