"""Unpacking by tools/prepare.py: nothing is written outside the folder, and sizes are limited."""

import gzip
import io
import os
import shutil
import stat
import tarfile
import zipfile

import pytest
from archives import tar, zipped

from common.errors import UsageError
from datasets.preparing import unpack

IMAGES = {"2750/Forest/1.jpg": b"a" * 3000, "2750/River/2.jpg": b"b" * 5000}


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive, *words, inner=""):
    folder = archive.parent / "into/here"
    with pytest.raises(UsageError) as refusal:
        unpack.unpack(archive, folder, lambda name: name, inner)
    message = str(refusal.value)
    assert "\n" not in message and str(archive) in message
    assert [word for word in words if word not in message] == [], message
    outside = [path for path in archive.parent.rglob("*") if path.is_file() and folder not in path.parents]
    assert outside == [archive]
    assert not any(path.is_symlink() for path in archive.parent.rglob("*"))


@pytest.mark.parametrize(
    "write", [zipped, tar, lambda path, members: tar(path, members, "w")], ids=["zip", "tgz", "tar"]
)
def test_mapped_files_are_unpacked(write, tmp_path):
    archive = write(tmp_path / "archive", IMAGES | {"__MACOSX/2750/._1.jpg": b"", "notes.txt": b"no"})
    wanted = lambda name: name.removeprefix("2750/") if name.startswith("2750") else None  # noqa: E731
    unpack.unpack(archive, tmp_path / "into", wanted)
    assert files_below(tmp_path / "into") == {name.removeprefix("2750/"): data for name, data in IMAGES.items()}


def test_nested_archives_become_folders(tmp_path):
    inner = {}
    for name in ("n01", "n02"):
        inner[f"{name}.tar"] = tar(tmp_path / name, {f"{name}_1.JPEG": name.encode()}, "w").read_bytes()
    archive = tar(tmp_path / "train.tar", inner, "w")
    unpack.unpack(archive, tmp_path / "into", lambda name: name, "n*.tar")
    assert files_below(tmp_path / "into") == {f"{name}/{name}_1.JPEG": name.encode() for name in ("n01", "n02")}

    nested = zipped(tmp_path / "a.zip", {"a/b.tar.gz": tar(tmp_path / "b", IMAGES).read_bytes(), "a/c.tar": b"no"})
    unpack.unpack(nested, tmp_path / "both", lambda name: name if "2750" in name else None, "b.tar.gz")
    assert files_below(tmp_path / "both") == {f"a/b/{name}": data for name, data in IMAGES.items()}


def test_unpacking_is_resumed(tmp_path):
    archive, folder = tar(tmp_path / "archive", IMAGES), tmp_path / "into"
    unpack.unpack(archive, folder, lambda name: name)
    whole, cut = (folder / name for name in IMAGES)
    os.utime(whole, (1, 1))
    cut.write_bytes(b"b")
    unpack.unpack(archive, folder, lambda name: name)
    assert files_below(folder) == IMAGES and whole.stat().st_mtime == 1


OUTSIDE = ["/tmp/outside.jpg", "../outside.jpg", "2750/../../outside.jpg"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("write", [zipped, tar])
def test_paths_outside_the_folder_are_rejected(write, name, tmp_path):
    refused(write(tmp_path / "archive", IMAGES | {name: b"x"}), name, "outside")


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE"])
def test_links_and_devices_in_a_tar_are_rejected(kind, tmp_path):
    members = {"2750/link": (getattr(tarfile, kind), "/tmp"), "2750/link/x.jpg": b"x"}
    refused(tar(tmp_path / "archive", members), "'2750/link' is a link or a device")


def test_links_in_a_zip_are_rejected(tmp_path):
    kinds = [("2750/link", stat.S_IFLNK | 0o777)]
    refused(
        zipped(tmp_path / "archive", {"2750/link": "/tmp", "2750/link/x.jpg": b"x"}, kinds), "is a link or a device"
    )


def test_unsafe_nested_archive_is_rejected(tmp_path):
    content = tar(tmp_path / "inner", {"../../../outside.jpg": b"x"}, "w").read_bytes()
    os.remove(tmp_path / "inner")
    refused(tar(tmp_path / "archive", {"n01.tar": content}), "outside", inner="n*.tar")


@pytest.mark.parametrize("write", [zipped, tar], ids=["zip", "tgz"])
@pytest.mark.parametrize("name", ["\0empty", "./.", "."])
def test_files_without_a_name_are_rejected(write, name, tmp_path):
    archive = write(tmp_path / "archive", IMAGES | {name.replace("\0", "Q"): b"x"})
    if "\0" in name:  # both end a name there
        content = archive.read_bytes() if write is zipped else gzip.decompress(archive.read_bytes())
        content = content.replace(b"Qempty", b"\0empty")
        archive.write_bytes(content if write is zipped else gzip.compress(with_checksums(content)))
    refused(archive, f"it has a file with the name {name.partition(chr(0))[0]!r}")


def with_checksums(content):
    """A tar whose headers have the checksums of what is in them now."""
    blocks = [bytearray(content[at : at + 512]) for at in range(0, len(content), 512)]
    for block in blocks:
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            block[148:156] = f"{sum(block):06o}\0 ".encode()
    return b"".join(blocks)


def test_repeated_paths_stay_inside_the_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "SPARE", 10_000)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "archive", "w", 8) as archive:
        for number in range(100):
            archive.writestr("2750/1.jpg", bytes(900 + number % 2))
    refused(tmp_path / "archive", "it grows to more than")


def test_directory_of_a_zip_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "DIRECTORY", 1000)
    refused(zipped(tmp_path / "archive", {f"{n}.jpg": b"" for n in range(50)}), "directory of its files has more than")


@pytest.mark.parametrize("kind", ["folders", "extended headers"])
def test_headers_of_a_tar_have_a_limit(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "BLOCK", 1 << 14)
    monkeypatch.setattr(unpack, "HEADERS", 1 << 16)
    monkeypatch.setattr(unpack, "MOST_FILES", 500)
    with tarfile.open(tmp_path / "archive", "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(1000 if kind == "folders" else 1):
            info = tarfile.TarInfo(f"{number}")
            info.type = tarfile.DIRTYPE if kind == "folders" else tarfile.REGTYPE
            info.pax_headers = {} if kind == "folders" else {f"key{n}": "x" for n in range(10_000)}
            archive.addfile(info)
    refused(tmp_path / "archive", "or 500 files" if kind == "folders" else "it has headers of more than 65,536 bytes")


def test_archives_in_an_archive_share_its_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "SPARE", 100_000)
    monkeypatch.setattr(unpack, "BLOCK", 1 << 14)
    inner = gzip.compress(tarfile.TarInfo("a.jpg").tobuf() + bytes(90_000))  # an empty file, followed by zeros
    assert len(list(unpack.members(io.BufferedReader(io.BytesIO(inner)), "", unpack.Budget(100_000)))) == 1
    refused(
        zipped(tmp_path / "archive", {f"n{n}.tar": inner for n in range(5)}), "it grows to more than", inner="n*.tar"
    )


def test_decompression_bomb_is_rejected_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "SPARE", 10_000)
    for number, write in enumerate((zipped, tar)):
        archive = write(tmp_path / f"{number}", {"2750/small.jpg": b"x", "2750/bomb.jpg": bytes(1_000_000)})
        refused(archive, "unsafe archive, not unpacked: it grows to more than")
        assert not (tmp_path / "into/here/2750/bomb.jpg").exists()
        archive.unlink()
        shutil.rmtree(tmp_path / "into", ignore_errors=True)
    monkeypatch.setattr(unpack, "MOST_FILES", 5)
    refused(tar(tmp_path / "many", {f"{number}.jpg": b"" for number in range(20)}), "or 5 files")


@pytest.mark.parametrize("place", ["in a header", "after the last file"])
def test_bomb_outside_the_files_is_rejected_before_it_fills_memory(place, tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "SPARE", 10_000)
    monkeypatch.setattr(unpack, "BLOCK", 1 << 14)
    with tarfile.open(tmp_path / "plain", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("1.jpg")
        if place == "in a header":
            info.pax_headers = {"comment": "x" * 5_000_000}
        archive.addfile(info)
    content = (tmp_path / "plain").read_bytes() + bytes(5_000_000 if place == "after the last file" else 0)
    (tmp_path / "plain").unlink()
    (tmp_path / "archive").write_bytes(gzip.compress(content))
    refused(tmp_path / "archive", "unsafe archive, not unpacked: it grows to more than")


def test_zip_with_wrong_sizes_is_rejected(tmp_path):
    content = zipped(tmp_path / "archive", {"2750/bomb.jpg": bytes(100_000)}).read_bytes()
    true, lie = (size.to_bytes(4, "little") for size in (100_000, 10))
    (tmp_path / "archive").write_bytes(content.replace(true, lie))
    refused(tmp_path / "archive", "incomplete, or not an archive")


@pytest.mark.parametrize(
    "write", [zipped, tar, lambda path, members: tar(path, members, "w")], ids=["zip", "tgz", "tar"]
)
def test_truncated_archive(write, tmp_path):
    archive = write(tmp_path / "archive", {f"2750/{n}.jpg": os.urandom(30_000) for n in range(3)})
    archive.write_bytes(archive.read_bytes()[:50_000])
    refused(archive, "incomplete, or not an archive")


def test_gzip_damaged_after_its_last_file(tmp_path):
    archive = tar(tmp_path / "archive", IMAGES)
    content = bytearray(archive.read_bytes())
    content[-6] ^= 255  # in the checksum
    archive.write_bytes(content)
    refused(archive, "incomplete, or not an archive")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_damaged_in_a_file(method, tmp_path):
    with zipfile.ZipFile(tmp_path / "archive", "w", method) as archive:
        archive.writestr("2750/1.jpg", os.urandom(1000) + bytes(1000))
    content = bytearray((tmp_path / "archive").read_bytes())
    content[60:300] = bytes(240)
    (tmp_path / "archive").write_bytes(content)
    refused(tmp_path / "archive", "incomplete, or not an archive")


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", b"PK", gzip.compress(b"text", mtime=0), b"text" * 1000],
    ids=["empty", "html", "zip", "gzip", "text"],
)
def test_file_is_not_an_archive(content, tmp_path):
    (tmp_path / "archive").write_bytes(content)
    refused(tmp_path / "archive", "incomplete, or not an archive")


@pytest.mark.parametrize(
    "members",
    [{"2750/a": b"x", "2750/a/b.jpg": b"y"}, {"2750/a/b.jpg": b"y", "2750/a": b"x"}, {f"{'n' * 300}.jpg": b"x"}],
    ids=["folder in a file", "file over a folder", "too long"],
)
def test_invalid_file_names(members, tmp_path):
    archive = tar(tmp_path / "archive", members)
    with pytest.raises(UsageError, match="not unpacked: invalid file name .*/into/"):
        unpack.unpack(archive, tmp_path / "into", lambda name: name)


@pytest.mark.parametrize("write", [zipped, tar], ids=["zip", "tgz"])
def test_undecodable_file_names(write, tmp_path):
    archive = write(tmp_path / "archive", {"2750/\u00e9\0.jpg": b"x"})
    if write is zipped:  # its flags declare UTF-8
        archive.write_bytes(archive.read_bytes().replace("\u00e9".encode(), b"\xff\xff"))
    refused(archive, "incomplete, or not an archive")
