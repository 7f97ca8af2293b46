"""Downloads of tools/prepare.py: they go on where they broke off, and only the published file counts."""

import hashlib
import os

import pytest
import requests
from serving import serving

from common.errors import UsageError
from datasets.preparing import fetch
from datasets.preparing.files import File

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
    return File(NAME, "eurosat", url=f"{server.address}/{NAME}", bytes=len(CONTENT), md5=checksum)


def refused(file, folder, *words):
    with pytest.raises(UsageError) as refusal:
        fetch.fetch(file, folder, "do it by hand")
    message = str(refusal.value)
    assert message.endswith("do it by hand") and "\n" not in message
    assert [word for word in words if word not in message] == [], message


def starts(server):
    return [int(asked.removeprefix("bytes=").rstrip("-") or 0) for _, asked in server.requests]


def test_a_file_comes_whole_and_nothing_else_stays(server, file, tmp_path):
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == [NAME] and starts(server) == [0]


@pytest.mark.parametrize("fault", ["cut off", "cut off in a chunk", "busy"])
def test_an_interrupted_transfer_is_gone_on_with(fault, server, file, tmp_path):
    server.faults = [fault, fault]
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert len(starts(server)) == 3
    assert starts(server) == sorted(starts(server)) and (fault == "busy" or starts(server)[2] > len(CONTENT) / 2)


def test_what_came_before_a_failure_is_kept_for_the_next_time(server, file, tmp_path):
    server.faults = ["cut off", *["busy"] * fetch.TRIES]
    half = len(CONTENT) // 2
    refused(file, tmp_path, "503", f"({half:,} bytes came); give the same command again to go on from there")
    assert os.listdir(tmp_path) == [f"{NAME}.partial"]
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server)[-1] == half and os.listdir(tmp_path) == [NAME]


def test_a_server_without_ranges_sends_all_of_it_again(server, file, tmp_path):
    server.faults = ["cut off", "no ranges"]
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT


def test_a_server_may_send_less_than_was_asked_for(server, file, tmp_path):
    server.faults = ["cut off", "short range", "short range"]
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert starts(server) == [0, half, half + 1000, half + 2000]


def test_a_download_that_was_killed_when_complete_is_only_verified(server, file, tmp_path):
    (tmp_path / f"{NAME}.partial").write_bytes(CONTENT)
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert server.requests == []
    file.bytes = 0  # as where no size is published
    (tmp_path / NAME).rename(tmp_path / f"{NAME}.partial")
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server) == [len(CONTENT)]


def test_a_file_that_does_not_end_is_refused(server, file, tmp_path):
    server.faults = ["too long"]
    refused(file, tmp_path, "does not end after 102,400 bytes")
    assert os.listdir(tmp_path) == [] and starts(server) == [0]


@pytest.mark.parametrize("size", [1000, len(CONTENT), len(CONTENT) + 1])
def test_the_beginning_of_another_file_is_thrown_away(size, server, file, tmp_path):
    (tmp_path / f"{NAME}.partial").write_bytes(b"x" * size)
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == [NAME]


def test_another_file_than_the_published_one_is_refused(server, file, tmp_path):
    server.files[f"/{NAME}"] = CONTENT[::-1]
    refused(file, tmp_path, file.url, "its md5 is wrong")
    server.files[f"/{NAME}"] = CONTENT[:-1]
    refused(file, tmp_path, "102,399 bytes there, 102,400 as published")
    server.faults = ["not found"]
    refused(file, tmp_path, "404")
    server.faults = ["quota page"]
    refused(file, tmp_path, "a web page instead of the file")
    assert os.listdir(tmp_path) == []


def test_a_quota_page_does_not_spoil_what_came_before(server, file, tmp_path):
    server.faults = ["cut off", "quota page"]
    refused(file, tmp_path, "a web page instead of the file")
    assert fetch.fetch(file, tmp_path, "").read_bytes() == CONTENT
    assert starts(server)[-1] == len(CONTENT) // 2


def test_no_server_and_no_such_address(server, file, tmp_path):
    server.server_close()
    refused(file, tmp_path, file.url, "refuses connections", "try again later")
    refused(File(NAME, "eurosat", url="data/images.zip", bytes=1), tmp_path, "no such kind of address")
    assert os.listdir(tmp_path) == []


def test_a_mirror_has_files_by_dataset_and_name(server, file, tmp_path):
    server.files[f"/lab/eurosat/{NAME}"] = CONTENT
    drive = File(NAME, "eurosat", drive="1abc", bytes=len(CONTENT))
    assert fetch.fetch(drive, tmp_path, "", f"{server.address}/lab/").read_bytes() == CONTENT


# Google Drive, by gdown


@pytest.fixture
def drive(server, monkeypatch, tmp_path):
    """A file on a Google Drive that is the server: gdown's own requests reach it."""
    send = requests.adapters.HTTPAdapter.send

    def redirected(self, request, *args, **kwargs):
        assert request.url.startswith("https://drive.google.com/")
        request.url = server.address + request.url.removeprefix("https://drive.google.com")
        return send(self, request, *args, **kwargs)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", redirected)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # gdown keeps cookies there
    server.files["/uc"] = CONTENT
    (tmp_path / "data").mkdir()
    return File(NAME, "eurosat", drive="1abc", about=len(CONTENT))


def test_a_quota_page_of_google_drive_is_one_line(drive, server, tmp_path):
    server.faults = ["quota page"] * 5
    refused(drive, tmp_path / "data", "https://drive.google.com/uc?id=1abc", "too many people have downloaded it today")
    assert os.listdir(tmp_path / "data") == []


@pytest.mark.parametrize("content", [b"<html>Sign in</html>", None])
def test_what_gdown_takes_for_the_file_is_verified(content, drive, monkeypatch, tmp_path):
    def download(id, output, resume):
        assert (id, resume) == ("1abc", True)
        if content:
            (tmp_path / "data" / NAME).write_bytes(content)

    monkeypatch.setattr(fetch.gdown, "download", download)
    refused(drive, tmp_path / "data", "a web page" if content else "gdown got nothing")
    assert os.listdir(tmp_path / "data") == []
