"""Downloads of datasets' files and of backbones: they resume, and only the published file is
accepted. Unpacking.
"""

import gzip
import hashlib
import os
import signal
import tarfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from archives import tar, zipped
from drawn import features, small_clip
from marks import one_line
from published import files_below
from serving import serving

import clip
from clip import weights
from common import download
from datasets.files import File
from datasets.preparing.arrange import sort_into_classes
from datasets.preparing.fetch import fetch, unpack_file

CONTENT = bytes(range(256)) * 400
HALF = len(CONTENT) // 2
NAME = "images.zip"
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setattr(download, "BLOCK", 1 << 10)
    with serving({f"/{NAME}": CONTENT}) as server:
        yield server


@pytest.fixture
def file(server):
    checksum = hashlib.md5(CONTENT).hexdigest()
    return File(NAME, url=f"{server.address}/{NAME}", bytes=len(CONTENT), md5=checksum)


def refused(file, folder, *words):
    with one_line(*words) as refusal:
        fetch(file, folder, "download it manually")
    assert str(refusal.value).endswith("download it manually")


def starts(server):
    return [int(asked.removeprefix("bytes=").rstrip("-") or 0) for _, asked in server.requests]


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (["cut off", "cut off"], [0, HALF, HALF + HALF // 2]),
        (["busy", "busy"], [0, 0, 0]),
        (["cut off", "no ranges"], [0, HALF]),
    ],
)
def test_interrupted_transfers_are_resumed(faults, expected, server, file, tmp_path):
    server.faults = list(faults)
    assert fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server) == expected and os.listdir(tmp_path) == [NAME]


@pytest.mark.parametrize("fault", ["busy", "quota page"])
def test_received_bytes_are_kept_after_a_failure(fault, server, file, tmp_path):
    server.faults = ["cut off", *[fault] * download.TRIES]
    refused(file, tmp_path, f"({HALF:,} bytes received): run the same command again to resume")
    assert os.listdir(tmp_path) == [f"{NAME}.partial"]
    server.faults = []
    assert fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server)[-1] == HALF


def test_archive_stays_compressed(server, file, tmp_path):
    """Apache calls a .tar.gz its content and gzip its encoding."""
    content = gzip.compress(CONTENT)
    head = HEAD + f"Content-Encoding: x-gzip\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    server.faults = [head + content]
    file = replace(file, bytes=len(content), md5=hashlib.md5(content).hexdigest())
    assert fetch(file, tmp_path, "").read_bytes() == content


def test_complete_partial_file_is_only_verified(server, file, tmp_path):
    (tmp_path / f"{NAME}.partial").write_bytes(CONTENT)
    assert fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server) == [len(CONTENT)]


def test_interrupt_ends_a_download_and_keeps_its_bytes(server, file, tmp_path):
    """Ctrl-C while the server is silent."""

    def answer(handler):
        handler.wfile.write(HEAD + b"Content-Length: 102400\r\n\r\n" + CONTENT[:50_000])
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    server.faults = [answer]
    with pytest.raises(KeyboardInterrupt):
        fetch(file, tmp_path, "")
    assert os.listdir(tmp_path) == [f"{NAME}.partial"]
    assert fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server)[-1] > 0


SHORT = b"Content-Length: 102399\r\n\r\n" + CONTENT[1:]
ELSEWHERE = b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (HEAD + b"\r\n" + CONTENT[::-1], f"/{NAME}: its md5 is wrong"),
        (HEAD + SHORT, "it has 102,399 bytes, 102,400 as published"),
        (HEAD + b"\r\n" + CONTENT + b"x", "has more than 102,400 bytes"),
        ("not found", "404"),
        (lambda handler: time.sleep(0.3), "Connection"),
        (ELSEWHERE, "No connection adapters"),
    ],
)
def test_only_the_published_file_is_accepted(answer, words, server, file, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    server.faults = [answer] * download.TRIES
    refused(file, tmp_path, words, "run the same command again, or")
    assert os.listdir(tmp_path) == []


def test_google_drive_is_left_to_gdown_and_the_file_verified(file, tmp_path, monkeypatch):
    given = []

    def gdown_download(id, output, resume, timeout, progress):
        progress(len(CONTENT), None)
        given.append((id, resume, timeout))
        Path(output).write_bytes(CONTENT)

    monkeypatch.setattr("gdown.download", gdown_download)
    drive = replace(file, url="", drive="1abc")
    assert fetch(drive, tmp_path, "").read_bytes() == CONTENT
    assert given == [("1abc", True, download.TIMEOUT)]
    (tmp_path / NAME).unlink()
    wrong = replace(drive, md5="0")
    refused(wrong, tmp_path, "https://drive.google.com/uc?id=1abc", "md5 is wrong")
    refused(replace(drive, bytes=9), tmp_path, "more than 9 bytes")
    assert os.listdir(tmp_path) == []


# OpenAI's backbones


@pytest.fixture(scope="module")
def source():
    return small_clip()


@pytest.fixture
def published(source, server, tmp_path, monkeypatch):
    """A server with the weights of ViT-B/16 under `/<SHA-256>/`."""
    torch.save(source.state_dict(), tmp_path / "served.pt")
    content = (tmp_path / "served.pt").read_bytes()
    server.path = f"/{hashlib.sha256(content).hexdigest()}/ViT-B-16.pt"
    server.files = {server.path: content}
    monkeypatch.setitem(weights.URLS, "ViT-B/16", f"{server.address}{server.path}")
    return server


def test_backbone_is_downloaded_once_into_the_cache(published, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for _ in range(2):
        model, _ = clip.load("ViT-B/16", "cpu")
        assert torch.equal(features(model), features(source))
    assert len(published.requests) == 1
    cached = tmp_path / "home/.cache/clip"
    assert os.listdir(cached) == ["ViT-B-16.pt"]
    (cached / "ViT-B-16.pt").write_bytes(b"half of it")
    assert torch.equal(features(clip.load_backbone("ViT-B/16")), features(source))


@pytest.mark.parametrize("fault", ["other bytes", "not found", "no folder"])
def test_failed_download_of_a_backbone_leaves_no_file(fault, published, tmp_path):
    published.faults = [fault]
    if fault == "other bytes":
        published.files[published.path] = bytes(1000)
    if fault == "no folder":
        (tmp_path / "cache").write_text("in the way")
    words = "cannot download ViT-B/16 from http", "put a verified copy at"
    with one_line(*words, error=clip.ClipError) as caught:
        clip.load_backbone("ViT-B/16", cache=str(tmp_path / "cache"))
    assert ("SHA-256 is wrong" in str(caught.value)) == (fault == "other bytes")
    assert fault == "no folder" or os.listdir(tmp_path / "cache") == []


# Unpacking

IMAGES = {"2750/Forest/1.jpg": b"a" * 3000, "2750/River/2.jpg": b"b" * 5000}


@pytest.mark.parametrize("write", [zipped, tar, partial(tar, mode="w")], ids=["zip", "tgz", "tar"])
def test_files_are_unpacked_into_an_empty_folder(write, tmp_path):
    archive = write(tmp_path / "archive", IMAGES | {"__MACOSX/2750/._1.jpg": b""})
    (tmp_path / "into/2750").mkdir(parents=True)
    (tmp_path / "into/2750/half.jpg").write_bytes(b"of an earlier call")
    unpack_file(archive, tmp_path / "into")
    assert files_below(tmp_path / "into") == IMAGES


LINKS = {"2750/link": (tarfile.SYMTYPE, "/tmp"), "2750/link/x.jpg": b"x"}


@pytest.mark.parametrize(
    "members", [IMAGES | {"../../x.jpg": b"x"}, LINKS, {"a": (tarfile.CHRTYPE, "")}]
)
def test_tar_with_paths_outside_is_refused(members, tmp_path):
    with one_line(tmp_path / "archive", "not a safe archive"):
        unpack_file(tar(tmp_path / "archive", members), tmp_path / "into/here")
    assert not (tmp_path / "x.jpg").exists() and not any(
        path.is_symlink() for path in tmp_path.rglob("*")
    )


CUT_OFF = [
    (write, lambda content: content[:50_000]) for write in (zipped, tar, partial(tar, mode="w"))
]


@pytest.mark.parametrize(
    ("write", "damage"),
    [
        *CUT_OFF,
        (zipped, lambda content: content[:60] + bytes(240) + content[300:]),
        (tar, lambda content: content[:-8] + bytes(4) + content[-4:]),  # the checksum of gzip
    ],
)
def test_damaged_archives_are_refused(write, damage, tmp_path):
    archive = write(tmp_path / "archive", {f"2750/{n}.jpg": os.urandom(30_000) for n in range(3)})
    archive.write_bytes(damage(archive.read_bytes()))
    with one_line(archive, "is damaged, or not a safe archive"):
        unpack_file(archive, tmp_path / "into")


@pytest.mark.parametrize("meta", [None, b"", b"MATLAB 5.0 MAT-file"])
def test_a_damaged_development_kit_is_named(meta, tmp_path):
    members = {"ILSVRC2012_validation_ground_truth.txt": b"1\n"} | (
        {} if meta is None else {"meta.mat": meta}
    )
    kit = tar(tmp_path / "kit.tar.gz", members)
    with one_line(f"{kit} does not have the classes of the validation images"):
        sort_into_classes(tmp_path, kit, tmp_path / "kit")
