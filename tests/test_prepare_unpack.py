"""Unpacking by tools/prepare.py: nothing is written outside the folder, and sizes are limited."""

import gzip
import os
import stat
import tarfile
from functools import partial

import pytest
from archives import tar, zipped
from marks import one_line
from published import files_below

from common.errors import UsageError
from datasets.preparing import unpack
from datasets.preparing.arrange import sort_into_classes

IMAGES = {"2750/Forest/1.jpg": b"a" * 3000, "2750/River/2.jpg": b"b" * 5000}
KINDS = pytest.mark.parametrize("write", [zipped, tar, partial(tar, mode="w")], ids=["zip", "tgz", "tar"])


def refused(archive, *words, nested=""):
    folder = archive.parent / "into/here"
    with one_line(archive, *words):
        unpack.unpack(archive, folder, nested)
    outside = [path for path in archive.parent.rglob("*") if path.is_file() and folder not in path.parents]
    assert outside == [archive]
    assert not any(path.is_symlink() for path in archive.parent.rglob("*"))


@KINDS
def test_files_are_unpacked_into_an_empty_folder(write, tmp_path):
    archive = write(tmp_path / "archive", IMAGES | {"__MACOSX/2750/._1.jpg": b"", "2750/.DS_Store": b""})
    (tmp_path / "into/2750").mkdir(parents=True)
    (tmp_path / "into/2750/half.jpg").write_bytes(b"of an earlier call")
    unpack.unpack(archive, tmp_path / "into")
    assert files_below(tmp_path / "into") == IMAGES


def test_nested_archives_become_folders(tmp_path):
    inner = {}
    for name in ("n01", "n02"):
        inner[f"{name}.tar"] = tar(tmp_path / name, {f"{name}_1.JPEG": name.encode()}, "w").read_bytes()
    unpack.unpack(tar(tmp_path / "train.tar", inner, "w"), tmp_path / "into", "n*.tar")
    assert files_below(tmp_path / "into") == {f"{name}/{name}_1.JPEG": name.encode() for name in ("n01", "n02")}

    nested = zipped(tmp_path / "a.zip", {"a/b.tar.gz": tar(tmp_path / "b", IMAGES).read_bytes(), "a/c.tar": b"no"})
    unpack.unpack(nested, tmp_path / "both", "b.tar.gz")
    assert files_below(tmp_path / "both") == {"a/c.tar": b"no", **{f"a/b/{name}": IMAGES[name] for name in IMAGES}}


@pytest.mark.parametrize("name", ["/tmp/outside.jpg", "2750/../../outside.jpg"])
@KINDS
def test_paths_outside_the_folder_are_rejected(write, name, tmp_path):
    refused(write(tmp_path / "archive", IMAGES | {name: b"x"}), name, "outside")


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "CHRTYPE", "FIFOTYPE", "zip"])
def test_links_and_devices_are_rejected(kind, tmp_path):
    if kind == "zip":
        members = {"2750/link": "/tmp", "2750/link/x.jpg": b"x"}
        zipped(tmp_path / "archive", members, [("2750/link", stat.S_IFLNK | 0o777)])
    else:
        tar(tmp_path / "archive", {"2750/link": (getattr(tarfile, kind), "/tmp"), "2750/link/x.jpg": b"x"})
    refused(tmp_path / "archive", "'2750/link' is a link or a device")


def test_unsafe_nested_archive_is_rejected(tmp_path):
    content = tar(tmp_path / "archive", {"../../../outside.jpg": b"x"}, "w").read_bytes()
    refused(tar(tmp_path / "archive", {"n01.tar": content}), "outside", nested="n*.tar")


def test_python_without_filters_is_refused(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(UsageError, match="^this Python cannot unpack archives safely: update it to 3.10.12, 3.11.4"):
        unpack.unpack(tar(tmp_path / "archive", IMAGES), tmp_path / "into")


# Sizes


@pytest.mark.parametrize("write", [zipped, tar, "claims", "many"])
def test_files_may_not_grow_too_much(write, tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "SPARE", 10_000)
    monkeypatch.setattr(unpack, "MOST_FILES", 5)
    if write == "many":
        tar(tmp_path / "archive", {f"{number}": (tarfile.DIRTYPE, "") for number in range(20)})
    elif write == "claims":  # to have more than it has
        info = tarfile.TarInfo("2750/bomb.jpg")
        info.size = 10**9
        (tmp_path / "archive").write_bytes(info.tobuf() + bytes(10_000))
    else:
        write(tmp_path / "archive", {"2750/bomb.jpg": bytes(1_000_000)})
    refused(tmp_path / "archive", "unsafe, not unpacked (it grows to more files or bytes than images can take)")
    assert files_below(tmp_path / "into") == {}


def test_archives_in_an_archive_share_its_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "SPARE", 100_000)
    inner = gzip.compress(tarfile.TarInfo("a.jpg").tobuf() + bytes(90_000))  # an empty file, followed by zeros
    unpack.unpack(zipped(tmp_path / "archive", {"n.tar": inner}), tmp_path / "into/here", "n*.tar")
    refused(zipped(tmp_path / "archive", {f"n{n}.tar": inner for n in range(5)}), "it grows", nested="n*.tar")


def test_directory_of_a_zip_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "MOST_AT_ONCE", 1000)
    archive = zipped(tmp_path / "archive", {f"{n}.jpg": b"" for n in range(50)})
    refused(archive, "or the directory of its files, has more than 1,000 bytes")


@pytest.mark.parametrize("place", ["in a header", "after the last file"])
def test_bomb_outside_the_files_does_not_fill_the_memory(place, tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "SPARE", 10_000)
    monkeypatch.setattr(unpack, "MOST_AT_ONCE", 1 << 16)
    with tarfile.open(tmp_path / "plain", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("1.jpg")
        if place == "in a header":
            info.pax_headers = {"comment": "x" * 5_000_000}
        archive.addfile(info)
    content = (tmp_path / "plain").read_bytes() + bytes(5_000_000 if place == "after the last file" else 0)
    (tmp_path / "plain").unlink()
    (tmp_path / "archive").write_bytes(gzip.compress(content))
    refused(tmp_path / "archive", "a header" if place == "in a header" else "it grows to more")


def test_negative_size_in_a_tar_is_refused(tmp_path):
    """tarfile of Python 3.11.7 never stops reading the header, if the file itself is not wanted."""
    header = bytearray(tarfile.TarInfo("._a.jpg").tobuf())
    header[124:136] = (-512).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "archive").write_bytes(tarfile.TarInfo("first.jpg").tobuf() + bytes(header) + bytes(10_240))
    refused(tmp_path / "archive", "smaller than nothing")


# Damage


CUT_OFF = [(write, lambda content: content[:50_000]) for write in (zipped, tar, partial(tar, mode="w"))]
OTHERS = [b"", b"<html>", b"PK", gzip.compress(b"text", mtime=0), b"text" * 1000]


@pytest.mark.parametrize(
    ("write", "damage"),
    [
        *CUT_OFF,
        (zipped, lambda content: content[:60] + bytes(240) + content[300:]),
        (tar, lambda content: content[:-8] + bytes(4) + content[-4:]),  # the checksum of gzip
        *((zipped, lambda content, other=other: other) for other in OTHERS),
    ],
)
def test_damaged_archives_are_refused(write, damage, tmp_path):
    archive = write(tmp_path / "archive", {f"2750/{n}.jpg": os.urandom(30_000) for n in range(3)})
    archive.write_bytes(damage(archive.read_bytes()))
    refused(archive, "incomplete, or not an archive")


@pytest.mark.parametrize(
    "names", [["a", "a/b.jpg"], ["a/b.jpg", "a"], [f"{'n' * 300}.jpg"], ["."], ["\u00e9\0.jpg"]], ids=ascii
)
@pytest.mark.parametrize("write", [zipped, tar], ids=["zip", "tgz"])
def test_invalid_file_names(write, names, tmp_path):
    archive = write(tmp_path / "archive", dict.fromkeys(names, b"x"))
    if write is zipped:  # its flags declare UTF-8
        archive.write_bytes(archive.read_bytes().replace("\u00e9".encode(), b"\xff\xff"))
    refused(archive, "incomplete, or not an archive")


@pytest.mark.parametrize("content", [None, b"", b"MATLAB 5.0 MAT-file"])
def test_a_damaged_development_kit_is_named(content, tmp_path):
    kit = tmp_path / "kit"
    kit.mkdir()
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n")
    if content is not None:
        (kit / "meta.mat").write_bytes(content)
    with pytest.raises(UsageError, match="kit.tar.gz does not have the classes of the validation images") as error:
        sort_into_classes(tmp_path, kit, tmp_path / "kit.tar.gz")
    assert error.value.where == tmp_path / "kit.tar.gz"
