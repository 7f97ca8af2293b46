"""Downloads of tools/prepare.py: they are resumed, and only the published file is accepted."""

import hashlib
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import requests
from marks import one_line
from serving import serving

from common import download
from datasets.files import File
from datasets.preparing import fetch

CONTENT = bytes(range(256)) * 400
NAME = "images.zip"
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setattr(download, "BLOCK", 1 << 12)
    with serving({f"/{NAME}": CONTENT}) as server:
        yield server


@pytest.fixture
def file(server):
    checksum = hashlib.md5(CONTENT).hexdigest()
    return File(NAME, url=f"{server.address}/{NAME}", bytes=len(CONTENT), md5=checksum)


def refused(file, folder, *words):
    with one_line(*words) as refusal:
        fetch.fetch(file, folder, "download it manually")
    assert str(refusal.value).endswith("download it manually")


def starts(server):
    return [int(asked.removeprefix("bytes=").rstrip("-") or 0) for _, asked in server.requests]


HALF = len(CONTENT) // 2


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ([], [0]),
        (["cut off", "cut off"], [0, HALF, HALF + HALF // 2]),
        (["busy", "busy"], [0, 0, 0]),
        (["cut off", "no ranges"], [0, HALF]),
        (["cut off", "short range"], [0, HALF, HALF + 1000]),
        # Content-Range and Content-Length without sense
        (["cut off", b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 4-10/10\r\n\r\n" + CONTENT[5:]], [0, HALF, 0]),
        ([HEAD + b"Content-Length: \xb2\r\n\r\n" + CONTENT], [0]),
    ],
)
def test_interrupted_transfers_are_resumed(faults, expected, server, file, tmp_path):
    server.faults = list(faults)
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server) == expected and os.listdir(tmp_path) == [NAME]


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (["busy"] * (download.TRIES - 1), ["503", f"({HALF:,} bytes received): run the same command again to resume"]),
        (["quota page"], ["a web page instead of the file"]),
    ],
)
def test_received_bytes_are_kept_after_a_failure(faults, words, server, file, tmp_path):
    server.faults = ["cut off", *faults]
    refused(file, tmp_path, *words)
    assert os.listdir(tmp_path) == [f"{NAME}.partial"] and len(server.requests) == 1 + len(faults)
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server)[-1] == HALF


@pytest.mark.parametrize(("published", "asked"), [(len(CONTENT), []), (0, [len(CONTENT)])])
def test_complete_partial_file_is_only_verified(published, asked, server, file, tmp_path):
    (tmp_path / f"{NAME}.partial").write_bytes(CONTENT)
    assert fetch.fetch(replace(file, bytes=published), tmp_path, "").read_bytes() == CONTENT
    assert starts(server) == asked


@pytest.mark.parametrize("size", [1000, len(CONTENT), len(CONTENT) + 1])
def test_partial_file_of_another_file_is_deleted(size, server, file, tmp_path):
    (tmp_path / f"{NAME}.partial").write_bytes(b"x" * size)
    refused(file, tmp_path, "run the same command again, or")
    assert os.listdir(tmp_path) == []


def endless(head):
    """An answer without an end."""

    def answer(handler):
        with suppress(OSError):  # the client has had enough
            handler.wfile.write(head + b"\r\n")
            while True:
                handler.wfile.write(bytes(1 << 16))

    return answer


def moved(target: str) -> list[bytes]:
    return [f"HTTP/1.1 302 Found\r\nLocation: {target}\r\n\r\n".encode("latin-1")]


# See also tests/fuzz/downloads.py
@pytest.mark.parametrize(
    ("answers", "facts", "words"),
    [
        ([HEAD + b"\r\n" + CONTENT[::-1]], {}, f"/{NAME}: its md5 is wrong"),
        ([HEAD + b"Content-Length: 102399\r\n\r\n" + CONTENT[1:]], {}, "it has 102,399 bytes there, 102,400 as"),
        (["not found"], {}, "404"),
        ([endless(HEAD)], {}, "does not end after 102,400 bytes"),
        ([endless(HEAD)], {"bytes": 0, "about": 1}, f"does not end after {4 + (1 << 26):,} bytes"),
        ([b"nonsense"] * download.TRIES, {}, "the connection failed ("),
        ([HEAD + b"X: " + b"x" * 70_000] * download.TRIES, {}, "the connection failed ("),
        ([lambda handler: time.sleep(0.3)] * download.TRIES, {}, "the connection failed ("),
        (moved("http://[::1/") * download.TRIES, {}, "the connection failed"),
        (moved("file:///etc/passwd"), {}, "302 Found - Redirection to url 'file:///etc/passwd' is not allowed"),
        (moved(f"/{NAME}") * 12, {}, "redirect error"),
        ([], {"url": "data/images.zip"}, "data/images.zip is not an address of http or https"),
        ([], {"url": "http://127.0.0.1:1/images.zip"}, "Connection refused"),
    ],
)
def test_only_the_published_file_is_accepted(answers, facts, words, server, file, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    server.faults = list(answers)
    refused(replace(file, **facts), tmp_path, words, "run the same command again, or")
    assert os.listdir(tmp_path) == []


def test_redirects_are_followed_and_their_bodies_not_read(server, file, tmp_path):
    server.faults = [endless(b"HTTP/1.1 302 Found\r\nLocation: images.zip\r\n"), *moved(f"{file.url}?a=%20")]
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT


def test_interrupt_ends_a_download_and_keeps_its_bytes(server, file, tmp_path):
    """Ctrl-C while the server is silent."""

    def answer(handler):
        handler.wfile.write(HEAD + b"Content-Length: 102400\r\n\r\n" + CONTENT[:50_000])
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    server.faults = [answer]
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(file, tmp_path, "")
    assert os.listdir(tmp_path) == [f"{NAME}.partial"]
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server)[-1] > 0


# Google Drive, by gdown


@pytest.fixture
def drive(server, monkeypatch, tmp_path):
    """A file on Google Drive; gdown's requests are redirected to the server."""
    send = requests.adapters.HTTPAdapter.send

    def redirected(self, request, *args, **kwargs):
        assert request.url.startswith("https://drive.google.com/")
        assert kwargs["timeout"] == download.TIMEOUT
        request.url = server.address + request.url.removeprefix("https://drive.google.com")
        return send(self, request, *args, **kwargs)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", redirected)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # gdown keeps cookies there
    server.files["/uc"] = CONTENT
    about = b"Content-Type: application/zip\r\nContent-Disposition: attachment\r\nContent-Length: 102400\r\n\r\n"
    server.faults = [HEAD + about + CONTENT]
    (tmp_path / "data").mkdir()
    return File(NAME, drive="1abc", about=len(CONTENT))


def test_google_drive(drive, tmp_path):
    assert fetch.fetch(drive, tmp_path / "data", "").read_bytes() == CONTENT
    assert os.listdir(tmp_path / "data") == [NAME]


@pytest.mark.parametrize(
    ("faults", "facts", "words"),
    [
        (["quota page"] * 5, {}, ["https://drive.google.com/uc?id=1abc", "Too many users have viewed"]),
        ([], {"bytes": 9}, ["not end after 9 bytes"]),
        ([], {"md5": "0"}, ["md5 is wrong"]),
    ],
)
def test_files_from_google_drive_are_verified(faults, facts, words, drive, server, tmp_path):
    server.faults = faults or server.faults
    refused(replace(drive, **facts), tmp_path / "data", *words)
    assert NAME not in os.listdir(tmp_path / "data")
