"""Failures of tools/prepare.py: one line, exit status 2, no unfinished files."""

import errno
import os
import shutil
import signal
import threading
import zipfile
from pathlib import Path

import pytest
from archives import zipped
from filelock import FileLock
from published import V2, all_below, change_file, files_below

from datasets.preparing.arrange import LOCK, Preparation
from datasets.preparing.sources import downloadable

SPLIT = "split_zhou_EuroSAT.json"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no dataset is given"),
        (["eurosatt"], "there is no dataset 'eurosatt': did you mean eurosat?"),
        (["fewshot", "imagenet_a"], "imagenet_a has test images only"),
        (["fewshot", "dtd"], "python tools/prepare.py dtd --root"),
    ],
)
def test_invalid_arguments(arguments, words, prepare, tmp_path):
    status, _, errors = prepare(*arguments)
    assert status == 2 and words in errors[-1] and not (tmp_path / "data").exists()


FAULTS = {
    "wrong checksum": "md5 is wrong",
    "truncated": "is damaged",
    "images missing": "1 images of the split are not in the archives",
    "no folder": "no folder 2750 in it",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_invalid_archive_is_refused_and_a_valid_one_taken_afterwards(
    fault, prepare_fails, prepare, publish, monkeypatch, tmp_path
):
    made = publish("eurosat")
    good = publish.server.files["/eurosat/EuroSAT.zip"]
    members = {f"2750/{path}": content for path, content in files_below(made / "2750").items()}
    if fault == "images missing":
        members.popitem()
    elif fault == "no folder":
        members = {path.replace("2750", "images"): content for path, content in members.items()}
    content = {"wrong checksum": good[:-1] + b"x", "truncated": good[:-5]}.get(fault)
    publish.server.files["/eurosat/EuroSAT.zip"] = (
        content or zipped(tmp_path / "bad.zip", members).read_bytes()
    )
    if fault != "wrong checksum":  # no checksum is published
        change_file(monkeypatch, "eurosat", "EuroSAT.zip", md5="", bytes=0, about=1 << 20)
    prepare_fails(["eurosat"], FAULTS[fault])
    if fault == "images missing":  # the split may be the wrong file, and the archive stays
        shutil.rmtree(tmp_path / "data/eurosat/.preparing")
    else:
        assert all_below(tmp_path / "data") == {"eurosat", f"eurosat/{SPLIT}"}

    publish.server.files["/eurosat/EuroSAT.zip"] = good
    assert prepare("eurosat").status == 0 and prepare("--check", "eurosat").status == 0


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (os.mkfifo, "given/EuroSAT.zip is not a regular file"),
        (Path.touch, "given/EuroSAT.zip is not the published file (it has 0 bytes, "),
    ],
)
def test_a_given_archive_that_is_another_file_is_named_and_not_downloaded(
    write, words, prepare_fails, publish, tmp_path
):
    publish("eurosat")
    (tmp_path / "given").mkdir()
    write(tmp_path / "given/EuroSAT.zip")
    prepare_fails(["eurosat", "--from", tmp_path / "given"], words)
    assert not (tmp_path / "data").exists() or all_below(tmp_path / "data") <= {
        "eurosat",
        f"eurosat/{SPLIT}",
    }


@pytest.mark.parametrize("content", [b'{"train": []}', None])
def test_a_failed_or_wrong_download_leaves_no_folders(
    content, prepare_fails, publish, monkeypatch, tmp_path
):
    publish("eurosat")
    change_file(monkeypatch, "eurosat", SPLIT, md5="", bytes=0)
    if content is None:
        publish.server.files.pop(f"/eurosat/{SPLIT}")
    else:
        publish.server.files[f"/eurosat/{SPLIT}"] = content
    prepare_fails(["eurosat"], SPLIT, f"put it into {tmp_path}/data/eurosat" if content else "404")
    assert not (tmp_path / "data").exists()


def replaced_by_a_broken_link(path):
    """The disk with the images may not be mounted."""
    shutil.rmtree(path)
    path.symlink_to("a disk that is not there")


@pytest.mark.parametrize(
    ("name", "place", "harm", "words"),
    [
        ("dtd", "images", replaced_by_a_broken_link, "images: is not a folder"),
        ("eurosat", SPLIT, lambda path: path.write_text("{"), "is damaged"),
        ("imagenetv2", f"{V2}/cats", lambda path: path.mkdir(), "is not one of the 4 classes"),
    ],
)
def test_what_is_in_the_way_is_neither_changed_nor_replaced(
    name, place, harm, words, prepare_fails, publish, tmp_path
):
    folder = tmp_path / "data" / name
    shutil.copytree(publish(name), folder)
    harm(folder / place)
    before = all_below(folder)
    remedy = (
        f"move {folder / place} elsewhere, then: python tools/prepare.py {name} --root "
        f"{tmp_path}/data"
    )
    prepare_fails([name], words, remedy)
    assert all_below(folder) == before and publish.server.requests == []


def test_full_disk(prepare_fails, publish, monkeypatch, tmp_path):
    publish("eurosat")
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        prepare_fails(["sun397"], "78.2 GB are needed", "0.0 GB are free", "choose another --root")
    assert publish.server.requests == [] and not (tmp_path / "data").exists()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    prepare_fails(["eurosat"], "No space left on device: fix this or choose another --root")
    assert all_below(tmp_path / "data/eurosat/.preparing") == {"EuroSAT.zip"}


def test_interrupt_while_unpacking_leaves_only_the_download(
    prepare, publish, monkeypatch, tmp_path
):
    made = publish("eurosat")
    extract = zipfile.ZipFile._extract_member
    members = []

    def interrupted(self, member, path, password):
        members.append(member)
        if len(members) == 5:
            os.kill(os.getpid(), signal.SIGTERM)  # as Ctrl-C, but also in the background
        return extract(self, member, path, password)

    monkeypatch.setattr(zipfile.ZipFile, "_extract_member", interrupted)
    assert prepare("eurosat").status == 130
    left = {".preparing", ".preparing/EuroSAT.zip", SPLIT}
    assert all_below(tmp_path / "data/eurosat") == left
    half = tmp_path / "data/eurosat/.preparing/unpacked/2750/half.jpg"  # as after SIGKILL
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    prepare.works("eurosat")
    assert files_below(tmp_path / "data/eurosat") == files_below(made)
    assert [path for path, _ in publish.server.requests].count("/eurosat/EuroSAT.zip") == 1


def test_killed_between_two_moves_it_continues(prepare, publish, monkeypatch, tmp_path):
    """Folders are not compared with a split, so that a half of them must not be there."""
    made = publish("imagenet")
    replace = os.replace

    def killed(source, target):
        if "images/train" in str(target):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        assert prepare("imagenet").status == 130
    assert prepare("imagenet").status == 0 and prepare("--check", "imagenet").status == 0
    assert len(files_below(tmp_path / "data/imagenet")) == len(files_below(made))


def test_one_process_at_a_time(publish, tmp_path):
    made = publish("eurosat")
    folder = tmp_path / "data/eurosat"
    folder.mkdir(parents=True)
    preparation = Preparation(
        downloadable()["eurosat"], tmp_path / "data", mirror=publish.server.address
    )
    thread = threading.Thread(target=preparation.run)
    # Of another process, which prepares it meanwhile
    with FileLock(folder / LOCK, is_singleton=False):
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and publish.server.requests == []
        shutil.copytree(made, folder, dirs_exist_ok=True)
    thread.join()
    assert publish.server.requests == [] and files_below(folder) == files_below(made)
