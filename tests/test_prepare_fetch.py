"""Downloads of tools/prepare.py: they are resumed, and only the published file is accepted."""

import hashlib
import itertools
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace

import gdown
import pytest
import requests
from serving import serving

from common import download
from common.download import TransferError
from common.errors import UsageError
from datasets.files import File
from datasets.preparing import fetch

CONTENT = bytes(range(256)) * 400
NAME = "images.zip"


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


@pytest.mark.parametrize("fault", ["cut off", "cut off in a chunk", "busy"])
def test_interrupted_transfers_are_resumed(fault, server, file, tmp_path):
    server.faults = [fault, fault]
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert len(starts(server)) == 3
    assert starts(server) == sorted(starts(server)) and (fault == "busy" or starts(server)[2] > len(CONTENT) / 2)


def test_received_bytes_are_kept_after_a_failure(server, file, tmp_path):
    server.faults = ["cut off", *["busy"] * download.TRIES]
    half = len(CONTENT) // 2
    refused(file, tmp_path, "503", f"({half:,} bytes received): run the same command again to resume")
    assert os.listdir(tmp_path) == [f"{NAME}.partial"]
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server)[-1] == half and os.listdir(tmp_path) == [NAME]


def test_server_without_ranges_sends_everything_again(server, file, tmp_path):
    server.faults = ["cut off", "no ranges"]
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT


def test_short_ranges_are_continued(server, file, tmp_path):
    server.faults = ["cut off", "short range", "short range"]
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert starts(server) == [0, half, half + 1000, half + 2000]


def test_complete_partial_file_is_only_verified(server, file, tmp_path):
    (tmp_path / f"{NAME}.partial").write_bytes(CONTENT)
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert server.requests == []
    file = replace(file, bytes=0)  # no size is published
    (tmp_path / NAME).rename(tmp_path / f"{NAME}.partial")
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server) == [len(CONTENT)]


def test_endless_download_is_rejected(server, file, tmp_path):
    server.faults = ["too long"]
    refused(file, tmp_path, "does not end after 102,400 bytes")
    assert os.listdir(tmp_path) == [] and starts(server) == [0]


@pytest.mark.parametrize("size", [1000, len(CONTENT), len(CONTENT) + 1])
def test_partial_file_of_another_file_is_discarded(size, server, file, tmp_path):
    (tmp_path / f"{NAME}.partial").write_bytes(b"x" * size)
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == [NAME]


def test_only_the_published_file_is_accepted(server, file, tmp_path):
    server.files[f"/{NAME}"] = CONTENT[::-1]
    refused(file, tmp_path, file.url, "its md5 is wrong")
    server.files[f"/{NAME}"] = CONTENT[:-1]
    refused(file, tmp_path, "102,399 bytes there, 102,400 as published")
    server.faults = ["not found"]
    refused(file, tmp_path, "404")
    server.faults = ["quota page"]
    refused(file, tmp_path, "a web page instead of the file")
    assert os.listdir(tmp_path) == []


def test_quota_page_keeps_received_bytes(server, file, tmp_path):
    server.faults = ["cut off", "quota page"]
    refused(file, tmp_path, "a web page instead of the file")
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server)[-1] == len(CONTENT) // 2


def test_unreachable_server_and_invalid_address(server, file, tmp_path):
    server.server_close()
    refused(file, tmp_path, file.url, "Connection refused", "run the same command again later")
    refused(File(NAME, url="data/images.zip", bytes=1), tmp_path, "not an address of http or https")
    assert os.listdir(tmp_path) == []


def test_mirror_replaces_the_address(server, file, tmp_path):
    server.files[f"/lab/eurosat/{NAME}"] = CONTENT
    drive = File(NAME, drive="1abc", bytes=len(CONTENT))
    assert fetch.fetch(drive, tmp_path, "", f"{server.address}/lab/eurosat").read_bytes() == CONTENT


# Answers that no honest server gives

HEAD = b"HTTP/1.1 200 OK\r\n"
ENDLESS = b"x" * (1 << 16)


def endless(*parts, block=ENDLESS, pause=0.0):
    """A fault: an answer that begins with these bytes and never ends."""

    def answer(handler):
        with suppress(OSError):  # the client has had enough
            handler.wfile.write(b"".join(parts))
            for _ in range(40 if pause else 1 << 30):
                handler.wfile.write(block)
                time.sleep(pause)

    return answer


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(download, "WINDOW", 0.3)


@pytest.mark.parametrize("length", ["\u00b2", "9" * 5000, "-5", "1_000", "", "0x10", "7, 7"])
def test_invalid_content_length_is_ignored(length, server, file, tmp_path):
    server.faults = [HEAD + f"Content-Length: {length}\r\n\r\n".encode("latin-1") + CONTENT]
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT


@pytest.mark.parametrize("numbers", ["\u00b2-5/9", f"5-9/{'9' * 5000}", "5-9", "x", "bytes 5-9/10", "-5-9/10"])
def test_invalid_content_range_begins_again(numbers, server, file, tmp_path):
    (tmp_path / f"{NAME}.partial").write_bytes(CONTENT[:5])
    answer = f"HTTP/1.1 206 Partial\r\nContent-Range: bytes {numbers}\r\n\r\n".encode("latin-1")
    server.faults = [answer + CONTENT[5:]]
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == [NAME]


REDIRECTS = {
    "http://[::1/": "it redirects to http://[::1/, not an address of http or https",
    "file:///etc/passwd": "it redirects to file:///etc/passwd, not an address",
    "http://\xe9\x01 x/": "it redirects to http://%E9%01%20x/, not an address",
    "/images.zip": "more than 10 redirects",
    "ftp://127.0.0.1/": "not an address of http or https",
    "data:,x": "not an address of http or https",
}


@pytest.mark.parametrize("target", REDIRECTS, ids=["bracket", "file", "letters", "loop", "ftp", "data"])
def test_redirects_are_checked(target, server, file, tmp_path):
    server.faults = 10 * [f"HTTP/1.1 302 Found\r\nLocation: {target}\r\n\r\n".encode("latin-1")]
    refused(file, tmp_path, REDIRECTS[target])
    assert os.listdir(tmp_path) == []


def test_redirects_are_followed(server, file, tmp_path):
    for target in ("images.zip", f"{server.address}/{NAME}?a=1&b=%20"):
        found = f"HTTP/1.1 302 Found\r\nLocation: {target}\r\n".encode()
        server.faults = [endless(found, b"\r\n"), found + b"Content-Length: 1\r\n\r\nx"]  # bodies are not read
        assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
        (tmp_path / NAME).unlink()


def test_regained_bytes_do_not_prolong_a_download(server, file, tmp_path, monkeypatch):
    """The server sends a few bytes more each time, then claims that there are fewer."""
    monkeypatch.setattr(download, "MOST_TRIES", 12)
    answers = []
    for size in range(1500, 1700):
        answers.append(HEAD + b"Content-Length: 102400\r\n\r\n" + CONTENT[:size])
        answers.append(b"HTTP/1.1 416 No\r\nContent-Range: bytes */9\r\n\r\n")
    server.faults = answers
    refused(file, tmp_path, "the transfer broke off, and the tries are used up")
    assert len(server.requests) == 12


SLOW = {
    "body": endless(HEAD, b"\r\n", block=b"x", pause=0.05),
    "header": endless(HEAD, b"X: ", block=b"x", pause=0.05),
    "status": endless(b"HTTP/1.1 ", block=b"0", pause=0.05),
    "100 Continue": endless(block=b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.05),
    "trailer": endless(HEAD, b"Transfer-Encoding: chunked\r\n\r\n0\r\n", block=b"a: b\r\n", pause=0.05),
    "nothing": lambda handler: time.sleep(1),
}


@pytest.mark.parametrize("part", SLOW)
def test_slow_server_is_given_up(part, server, file, tmp_path, impatient):
    server.faults = [SLOW[part]]
    began = time.monotonic()
    refused(file, tmp_path, "it is slower than 10,000 bytes a second")
    assert time.monotonic() - began < 2


def test_too_slow_download_is_given_up(impatient):
    counter = itertools.count(step=1 << 20)
    with pytest.raises(TransferError, match="it takes longer than 0.0 hours"):
        download.supervise(lambda: time.sleep(1), lambda: next(counter), most=100)


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BOMBS = {
    "chunk of -1 bytes": (endless(CHUNKED, b"-1\r\n"), "it does not end after 102,400 bytes"),
    "size of a chunk": (endless(CHUNKED), "the transfer broke off"),
    "body of an error": (endless(b"HTTP/1.1 503 Busy\r\n\r\n"), "the server answers 503 Busy"),
    "header": (endless(HEAD, b"X: "), "the connection failed (got more than 65536 bytes when reading header line)"),
    "headers": (endless(HEAD, block=b"X: 1\r\n" * 99), "the connection failed (got more than 100 headers)"),
    "reason": (b"HTTP/1.1 503 " + b"\x1b[31m " * 9000 + b"\r\n\r\n", "the server answers 503 ?[31m ?[31m "),
}


@pytest.mark.parametrize("part", BOMBS)
def test_endless_parts_of_an_answer_are_not_read(part, server, file, tmp_path):
    answer, words = BOMBS[part]
    server.faults = download.TRIES * [answer]
    refused(file, tmp_path, words)
    assert os.listdir(tmp_path) == []


def test_interrupt_ends_a_download_and_keeps_its_bytes(server, file, tmp_path):
    """Ctrl-C while the server is silent; the thread that waits for it writes nothing more."""
    ended = threading.Event()

    def answer(handler):
        handler.wfile.write(HEAD + b"Content-Length: 102400\r\n\r\n" + CONTENT[:50_000])
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        ended.wait(5)
        with suppress(OSError):
            handler.wfile.write(CONTENT[50_000:])

    server.faults = [answer]
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(file, tmp_path, "")
    ended.set()
    time.sleep(0.2)
    assert os.listdir(tmp_path) == [f"{NAME}.partial"]
    assert (tmp_path / f"{NAME}.partial").stat().st_size <= 50_000
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT


# Google Drive, by gdown


@pytest.fixture
def drive(server, monkeypatch, tmp_path):
    """A file on Google Drive; gdown's requests are redirected to the server."""
    send = requests.adapters.HTTPAdapter.send

    def redirected(self, request, *args, **kwargs):
        assert request.url.startswith("https://drive.google.com/")
        request.url = server.address + request.url.removeprefix("https://drive.google.com")
        return send(self, request, *args, **kwargs)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", redirected)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # gdown keeps cookies there
    server.files["/uc"] = CONTENT
    (tmp_path / "data").mkdir()
    return File(NAME, drive="1abc", about=len(CONTENT))


def test_slow_google_drive_is_given_up(drive, impatient, monkeypatch, tmp_path):
    monkeypatch.setattr(gdown, "download", lambda **options: time.sleep(1))
    refused(drive, tmp_path / "data", "https://drive.google.com/uc?id=1abc: it is slower than 10,000 bytes a second")


def test_google_drive_without_a_connection(drive, monkeypatch, tmp_path):
    def fail(**options):
        raise requests.ConnectionError("HTTPSConnectionPool(host='drive.google.com', port=443): Max retries exceeded")

    monkeypatch.setattr(gdown, "download", fail)
    message = (
        "https://drive.google.com/uc?id=1abc: there is no connection to the server: run the same command again later"
    )
    refused(drive, tmp_path / "data", message)


def test_google_drive_quota_page(drive, server, tmp_path):
    server.faults = ["quota page"] * 5
    refused(drive, tmp_path / "data", "https://drive.google.com/uc?id=1abc", "Too many users have viewed")
    assert os.listdir(tmp_path / "data") == []


@pytest.mark.parametrize("content", [b"<html>Sign in</html>", None])
def test_files_from_gdown_are_verified(content, drive, monkeypatch, tmp_path):
    def download(id, output, resume):
        assert (id, resume) == ("1abc", True)
        if content:
            (tmp_path / "data" / NAME).write_bytes(content)

    monkeypatch.setattr("gdown.download", download)
    refused(drive, tmp_path / "data", "a web page" if content else "gdown received nothing")
    assert os.listdir(tmp_path / "data") == []
