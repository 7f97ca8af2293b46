"""What goes wrong with tools/prepare.py is one line, exit status 2, and nothing half-written."""

import errno
import fcntl
import os
import shutil
import signal
import threading

import pytest
from archives import zipped
from published import all_below, files_below

from datasets.preparing import unpack
from datasets.preparing.arrange import Preparation
from datasets.preparing.sources import table


def test_what_was_asked_for_is_not_there(prepare_fails, tmp_path):
    prepare_fails([], "say which dataset")
    prepare_fails(["eurosatt"], "no dataset 'eurosatt': did you mean eurosat?")
    prepare_fails(["fewshot"], "fewshot DATASET")
    prepare_fails(["fewshot", "dtd", "--seed", -1], "--seed -1 chooses other images every time")
    prepare_fails(["fewshot", "imagenet_a"], "imagenet_a has test images only")
    prepare_fails(["DescribableTextures"], "did you mean dtd?")
    prepare_fails(["--check", "dtd", "--root", "~nobody"], "not as they should be")
    prepare_fails(["dtd", "--from", tmp_path / "none"], "no folder")
    prepare_fails(["fewshot", "dtd"], f"python tools/prepare.py dtd --root {tmp_path}/data")
    assert not (tmp_path / "data").exists()


def test_a_failed_download_leaves_no_folders(prepare_fails, publish, tmp_path):
    publish("eurosat")
    publish.server.faults = ["not found"]
    prepare_fails(
        ["eurosat"], "404", f"put split_zhou_EuroSAT.json into {tmp_path}/data/eurosat by hand, then: python tools"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "fault", ["wrong checksum", "truncated", "hostile", "quota page", "images missing", "no folder"]
)
def test_an_archive_that_cannot_be_used_is_one_line_and_nothing_of_it_stays(
    fault, prepare_fails, prepare, publish, monkeypatch, tmp_path
):
    made = publish("eurosat")
    archive = table()["eurosat"].files[1]
    good = publish.server.files["/eurosat/EuroSAT.zip"]
    members = {f"2750/{path}": content for path, content in files_below(made / "2750").items()}
    if fault == "hostile":
        members["../../outside.jpg"] = b"x"
    elif fault == "images missing":
        members.popitem()
    elif fault == "no folder":
        members = {path.replace("2750", "images"): content for path, content in members.items()}
    content = zipped(tmp_path / "bad.zip", members).read_bytes()
    content = {"wrong checksum": good[:-1] + b"x", "truncated": good[:-5]}.get(fault, content)
    publish.server.files["/eurosat/EuroSAT.zip"] = content
    if fault != "wrong checksum":  # as where none is published
        monkeypatch.setattr(archive, "md5", "")
        monkeypatch.setattr(archive, "bytes", 0)
        monkeypatch.setattr(archive, "about", 1 << 20)
    publish.server.faults = ["", "quota page"] if fault == "quota page" else []
    words = {
        "wrong checksum": "md5 is wrong",
        "truncated": "is cut off",
        "hostile": "outside",
        "quota page": "a web page",
    }
    words |= {"images missing": "1 images of the split are not in it", "no folder": "there is no 2750 in it"}
    prepare_fails(["eurosat"], words[fault])
    assert all_below(tmp_path / "data") == {"eurosat", "eurosat/split_zhou_EuroSAT.json"}
    assert not (tmp_path / "outside.jpg").exists()

    publish.server.files["/eurosat/EuroSAT.zip"] = good
    assert prepare("eurosat").status == 0 and prepare("--check", "eurosat").status == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"train": []}', b"<!DOCTYPE html><html>quota</html>"])
def test_a_split_that_is_none_is_refused(content, prepare_fails, publish, monkeypatch, tmp_path):
    publish("eurosat")
    for key in ("md5", "bytes"):
        monkeypatch.setattr(table()["eurosat"].files[0], key, type(getattr(table()["eurosat"].files[0], key))())
    publish.server.files["/eurosat/split_zhou_EuroSAT.json"] = content
    prepare_fails(["eurosat"], "split_zhou_EuroSAT.json")
    assert not (tmp_path / "data").exists()


def test_a_damaged_split_of_ones_own_is_not_overwritten(prepare_fails, publish, tmp_path):
    shutil.copytree(publish("eurosat"), tmp_path / "data/eurosat")
    split = tmp_path / "data/eurosat/split_zhou_EuroSAT.json"
    split.write_text("{")
    way_out = f"move {split} elsewhere, then: python tools/prepare.py eurosat"
    prepare_fails(["eurosat"], way_out)
    assert split.read_text() == "{"
    shutil.rmtree(tmp_path / "data/eurosat/2750")  # then nothing is downloaded in vain either
    prepare_fails(["eurosat"], way_out)
    assert f"-> {way_out}" in prepare_fails(["--check", "eurosat"], "not as they should be")
    assert publish.server.requests == []


def test_a_split_that_names_what_is_not_published_costs_no_download(prepare_fails, prepare, publish, tmp_path):
    made = publish("eurosat")
    split = tmp_path / "data/eurosat/split_zhou_EuroSAT.json"
    split.parent.mkdir(parents=True)
    split.write_text((made / split.name).read_text().replace("Forest_2.jpg", "Forest_9.jpg"))
    prepare_fails(
        ["eurosat"],
        f"{split} names 1 images that EuroSAT.zip has not, as published, the first 2750/Forest/Forest_9.jpg",
        f"move it elsewhere, then: python tools/prepare.py eurosat --root {tmp_path}/data",
    )
    split.rename(tmp_path / "elsewhere")
    assert prepare("eurosat").status == 0 and prepare("--check", "eurosat").status == 0
    assert [path for path, _ in publish.server.requests] == ["/eurosat/EuroSAT.zip", f"/eurosat/{split.name}"]


def test_an_archive_got_by_hand_that_is_cut_off_is_to_be_got_again(prepare_fails, publish, monkeypatch, tmp_path):
    publish("ucf101")
    archive, given = table()["ucf101"].files[1], tmp_path / "given"
    given.mkdir()
    (given / archive.name).write_bytes(publish.server.files[f"/ucf101/{archive.name}"][:-9])
    monkeypatch.setattr(archive, "bytes", 0)
    monkeypatch.setattr(archive, "md5", "")
    prepare_fails(
        ["ucf101", "--from", given], "is cut off, or no archive", f": get it from elsewhere and put it into {given}"
    )
    assert (given / archive.name).is_file()


def test_a_class_folder_without_images_is_filled_by_the_command_that_check_says(
    prepare, prepare_fails, publish, tmp_path
):
    shutil.copytree(publish("imagenet_r"), tmp_path / "data/imagenet-rendition")
    for image in (tmp_path / "data/imagenet-rendition/imagenet-r/n02012849").iterdir():
        image.unlink()
    command = f"python tools/prepare.py imagenet_r --root {tmp_path}/data --repair"
    assert f"-> {command}\n" in prepare_fails(["--check", "imagenet_r"], "not as they should be")
    prepare_fails(["imagenet_r"], "no images in", command)
    assert prepare("imagenet_r", "--repair").status == 0 and prepare("--check", "imagenet_r").status == 0


@pytest.mark.parametrize("place", ["dtd/images", "dtd"])
def test_a_link_that_leads_nowhere_is_in_the_way(place, prepare_fails, publish, tmp_path):
    publish("dtd")
    link = tmp_path / "data" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "a disk that is not there")
    way_out = f"move {link} elsewhere, then: python tools/prepare.py dtd --root {tmp_path}/data"
    prepare_fails(["dtd"], way_out)
    assert f"-> {way_out}" in prepare_fails(["--check", "dtd"], "not as they should be")
    assert publish.server.requests == []


def test_images_on_another_disk_are_added_to(prepare, publish, monkeypatch, tmp_path):
    made, other = publish("dtd"), tmp_path / "disk"
    shutil.copytree(made / "images", other / "images")
    shutil.rmtree(other / "images/braided")
    (other / "images/banded/banded_0001.jpg").unlink()
    (tmp_path / "data/dtd").mkdir(parents=True)
    (tmp_path / "data/dtd/images").symlink_to(other / "images")
    replace = os.replace

    def between_disks(source, target):
        if target.is_relative_to(tmp_path / "data/dtd/images") and ".preparing" in source.parts:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", between_disks)
    assert prepare("dtd").status == 0
    assert files_below(other / "images") == files_below(made / "images")


def test_too_little_room_is_said_before_anything_is_downloaded(prepare_fails, publish, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    prepare_fails(["eurosat", "sun397"], "78.2 GB are needed", "0.0 GB are free", "choose another --root")
    assert publish.server.requests == [] and not (tmp_path / "data").exists()


def test_a_full_disk_or_a_folder_that_cannot_be_written_to(prepare_fails, prepare, publish, monkeypatch, tmp_path):
    publish("eurosat")
    write = unpack.write

    def full(member, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(unpack, "write", full)
    prepare_fails(["eurosat"], "No space left on device: see to it")
    monkeypatch.setattr(unpack, "write", write)
    assert prepare("eurosat").status == 0
    images = tmp_path / "data/eurosat/2750/Forest"
    scandir = os.scandir

    def locked(path="."):
        if str(path) == str(images):  # whoever runs this may be root
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", locked)
        for command in (["--check", "eurosat"], ["--list", "eurosat"], ["eurosat"]):
            prepare_fails(command, f"Permission denied: {images}: see to it or choose another --root")
    (tmp_path / "file").write_text("in the way")
    prepare_fails(["eurosat"], f"{tmp_path}/file", "choose another --root", root=tmp_path / "file/data")


def test_an_interruption_and_the_same_command_again(prepare, publish, monkeypatch, tmp_path):
    made = publish("eurosat")
    write, written = unpack.write, []

    def interrupted(member, path):
        written.append(path)
        if len(written) == 5:
            os.kill(os.getpid(), signal.SIGTERM)  # as Ctrl-C, and heeded in the background too
        write(member, path)

    monkeypatch.setattr(unpack, "write", interrupted)
    status, _, errors = prepare("eurosat")
    assert (status, errors) == (130, ["Interrupted: the same command goes on where it was"])
    assert not (tmp_path / "data/eurosat/2750").exists()
    preparation = Preparation(table()["eurosat"], tmp_path / "data")
    there = sum(path.stat().st_size for path in preparation.staged.rglob("*.jpg"))
    assert there and preparation.space() == (table()["eurosat"].files[1].size - there, 0)  # room for the rest will do
    assert prepare("eurosat").status == 0
    assert files_below(tmp_path / "data/eurosat") == files_below(made)
    assert [path for path, _ in publish.server.requests].count("/eurosat/EuroSAT.zip") == 1


def test_one_process_at_a_time(publish, tmp_path):
    made = publish("eurosat")
    folder = tmp_path / "data/eurosat"
    folder.mkdir(parents=True)
    preparation = Preparation(table()["eurosat"], tmp_path / "data", mirror=publish.server.address)
    other = os.open(folder, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    thread = threading.Thread(target=preparation.run)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive() and publish.server.requests == []
    shutil.copytree(made, folder, dirs_exist_ok=True)  # the other process gets it meanwhile
    os.close(other)
    thread.join()
    assert publish.server.requests == [] and files_below(folder) == files_below(made)


def test_one_that_fails_does_not_stop_the_others(prepare_fails, publish, tmp_path):
    publish("eurosat")
    printed = prepare_fails(
        ["imagenet", "dtd", "eurosat"], "2 of 3 datasets could not be prepared", mirror=publish.server.address
    )
    assert "dtd: cannot get split_zhou_DescribableTextures.json" in printed and "eurosat: ready: " in printed
    assert "imagenet: cannot get classnames.txt" in printed
