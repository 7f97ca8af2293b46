"""Downloads of tools/prepare.py: they are resumed, and only the published file is accepted."""

import hashlib
import os
from dataclasses import replace

import pytest
import requests
from serving import serving

from common.errors import UsageError
from datasets.files import File
from datasets.preparing import fetch

CONTENT = bytes(range(256)) * 400
NAME = "images.zip"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE", 0)
    monkeypatch.setattr(fetch, "BLOCK", 1 << 12)
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
    server.faults = ["cut off", *["busy"] * fetch.TRIES]
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
