"""Downloads of tools/prepare.py: they are resumed, and only the published file is accepted."""

import hashlib
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import requests
from serving import serving

from common import download
from common.errors import UsageError
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
    with pytest.raises(UsageError) as refusal:
        fetch.fetch(file, folder, "download it manually")
    message = str(refusal.value)
    assert message.endswith("download it manually") and "\n" not in message
    assert [word for word in words if word not in message] == [], message


def starts(server):
    return [int(asked.removeprefix("bytes=").rstrip("-") or 0) for _, asked in server.requests]


def test_a_complete_download_leaves_only_the_file(server, file, tmp_path):
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == [NAME] and starts(server) == [0]


HALF = len(CONTENT) // 2


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (["cut off", "cut off"], [0, HALF, HALF + HALF // 2]),
        (["busy", "busy"], [0, 0, 0]),
        (["cut off", "no ranges"], [0, HALF]),
        (["cut off", "short range"], [0, HALF, HALF + 1000]),
    ],
)
def test_interrupted_transfers_are_resumed(faults, expected, server, file, tmp_path):
    server.faults = list(faults)
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server) == expected


def test_received_bytes_are_kept_after_a_failure(server, file, tmp_path):
    server.faults = ["cut off", *["busy"] * (download.TRIES - 1)]
    refused(file, tmp_path, "503", f"({HALF:,} bytes received): run the same command again to resume")
    assert os.listdir(tmp_path) == [f"{NAME}.partial"] and len(server.requests) == download.TRIES
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server)[-1] == HALF and os.listdir(tmp_path) == [NAME]


def test_complete_partial_file_is_only_verified(server, file, tmp_path):
    (tmp_path / f"{NAME}.partial").write_bytes(CONTENT)
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert server.requests == []
    file = replace(file, bytes=0)  # no size is published
    (tmp_path / NAME).rename(tmp_path / f"{NAME}.partial")
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server) == [len(CONTENT)]


@pytest.mark.parametrize("size", [1000, len(CONTENT), len(CONTENT) + 1])
def test_partial_file_of_another_file_is_deleted(size, server, file, tmp_path):
    (tmp_path / f"{NAME}.partial").write_bytes(b"x" * size)
    refused(file, tmp_path, "run the same command again, or")
    assert os.listdir(tmp_path) == []
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT


def test_only_the_published_file_is_accepted(server, file, tmp_path):
    server.files[f"/{NAME}"] = CONTENT[::-1]
    refused(file, tmp_path, file.url, "its md5 is wrong")
    server.files[f"/{NAME}"] = CONTENT[:-1]
    refused(file, tmp_path, "it has 102,399 bytes there, 102,400 as published")
    server.faults = ["not found"]
    refused(file, tmp_path, "404")
    assert os.listdir(tmp_path) == []


def test_quota_page_keeps_received_bytes(server, file, tmp_path):
    server.faults = ["cut off", "quota page"]
    refused(file, tmp_path, "a web page instead of the file")
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server)[-1] == HALF


def test_unreachable_server_and_invalid_address(server, file, tmp_path):
    server.server_close()
    refused(file, tmp_path, file.url, "Connection refused", "run the same command again")
    for url in ("data/images.zip", "file:///etc/passwd"):
        refused(File(NAME, url=url, bytes=1), tmp_path, "not an address of http or https")
    assert os.listdir(tmp_path) == []


def test_mirror_replaces_the_address(server, file, tmp_path):
    server.files[f"/lab/eurosat/{NAME}"] = CONTENT
    drive = File(NAME, drive="1abc", bytes=len(CONTENT))
    assert fetch.fetch(drive, tmp_path, "", f"{server.address}/lab/eurosat").read_bytes() == CONTENT


# Answers that no honest server gives: see also tests/fuzz/downloads.py


def test_invalid_headers_begin_again_or_are_ignored(server, file, tmp_path):
    (tmp_path / f"{NAME}.partial").write_bytes(CONTENT[:5])
    part = "HTTP/1.1 206 Partial\r\nContent-Range: bytes 4-10/10\r\n\r\n".encode("latin-1") + CONTENT[5:]
    server.faults = [part, HEAD + b"Content-Length: \xb2\r\n\r\n" + CONTENT]
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server) == [5, 0]


REDIRECTS = {
    "http://[::1/": "the connection failed",
    "file:///etc/passwd": "file:///etc/passwd",
    "/images.zip": "redirect error",
}


@pytest.mark.parametrize("target", REDIRECTS, ids=["bracket", "file", "loop"])
def test_redirects_are_checked(target, server, file, tmp_path):
    server.faults = 12 * [f"HTTP/1.1 302 Found\r\nLocation: {target}\r\n\r\n".encode("latin-1")]
    refused(file, tmp_path, REDIRECTS[target])
    assert os.listdir(tmp_path) == []


def endless(head):
    """An answer without an end."""

    def answer(handler):
        with suppress(OSError):  # the client has had enough
            handler.wfile.write(head + b"\r\n")
            while True:
                handler.wfile.write(bytes(1 << 16))

    return answer


def test_redirects_are_followed_and_their_bodies_not_read(server, file, tmp_path):
    redirect = b"HTTP/1.1 302 Found\r\nLocation: images.zip\r\n"
    server.faults = [endless(redirect), f"HTTP/1.1 302 Found\r\nLocation: {file.url}?a=%20\r\n\r\n".encode()]
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT


@pytest.mark.parametrize("published", [True, False])
def test_endless_download_is_rejected(published, server, file, tmp_path):
    server.faults = [endless(HEAD)]
    file = file if published else replace(file, bytes=0, about=1)
    refused(file, tmp_path, f"does not end after {102_400 if published else file.max_bytes:,} bytes")
    assert os.listdir(tmp_path) == [] and starts(server) == [0]


@pytest.mark.parametrize(
    "answer", [b"nonsense", HEAD + b"X: " + b"x" * 70_000, "silence"], ids=["nonsense", "long", "no"]
)
def test_nonsense_and_silence_end_in_one_line(answer, server, file, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    server.faults = download.TRIES * [(lambda handler: time.sleep(0.3)) if answer == "silence" else answer]
    refused(file, tmp_path, "the connection failed (")
    assert os.listdir(tmp_path) == []


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


def test_google_drive_quota_page(drive, server, tmp_path):
    server.faults = ["quota page"] * 5
    refused(drive, tmp_path / "data", "https://drive.google.com/uc?id=1abc", "Too many users have viewed")
    assert os.listdir(tmp_path / "data") == []


@pytest.mark.parametrize(("facts", "words"), [({"bytes": 9}, "not end after 9 bytes"), ({"md5": "0"}, "md5 is wrong")])
def test_files_from_google_drive_are_verified(facts, words, drive, tmp_path):
    refused(replace(drive, **facts), tmp_path / "data", words)
    assert NAME not in os.listdir(tmp_path / "data")
