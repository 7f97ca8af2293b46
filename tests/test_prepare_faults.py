"""Failures of tools/prepare.py: one line, exit status 2, no unfinished files."""

import errno
import os
import shutil
import signal
import threading

import pytest
from archives import tar, zipped
from filelock import FileLock
from published import all_below, change_file, files_below

from datasets.preparing import unpack
from datasets.preparing.arrange import LOCK, Preparation
from datasets.preparing.sources import downloadable


def test_invalid_arguments(prepare_fails, tmp_path):
    prepare_fails([], "no dataset is given")
    prepare_fails(["eurosatt"], "there is no dataset 'eurosatt': did you mean eurosat?")
    prepare_fails(["fewshot"], "fewshot DATASET")
    prepare_fails(["fewshot", "dtd", "--seed", -1], "--seed -1 selects other images every time")
    prepare_fails(["fewshot", "dtd", "--seed", 2**33], "SEED is 8589934592: give an integer from -1 to 4,294,967,295")
    prepare_fails(["fewshot", "dtd", "--shots", 0], "DATASET.NUM_SHOTS is 0: give an integer from -1 to 1,000,000")
    prepare_fails(["fewshot", "imagenet_a"], "imagenet_a has test images only")
    prepare_fails(["DescribableTextures"], "did you mean dtd?")
    prepare_fails(["--check", "dtd", "--root", "~nobody"], "datasets are incomplete or wrong")
    prepare_fails(["dtd", "--from", tmp_path / "none"], "no folder")
    prepare_fails(["fewshot", "dtd"], f"python tools/prepare.py dtd --root {tmp_path}/data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("option", ["--root", "--from"])
def test_an_empty_folder_is_not_the_current_one(option, prepare, monkeypatch, tmp_path):
    """`--root ""` drew small_land into the current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    status, _, errors = prepare("small_land", option, "", root="" if option == "--root" else tmp_path / "data")
    assert status == 2 and errors[-1].endswith(f"argument {option}: expected a path (. for the current folder)")
    assert not list((tmp_path / "here").iterdir())


def test_a_failed_download_leaves_no_folders(prepare_fails, publish, tmp_path):
    publish("eurosat")
    publish.server.faults = ["not found"]
    prepare_fails(
        ["eurosat"], "404", f"put split_zhou_EuroSAT.json into {tmp_path}/data/eurosat manually, then: python tools"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "fault", ["wrong checksum", "truncated", "unsafe", "no name", "quota page", "images missing", "no folder"]
)
def test_invalid_archives_leave_nothing_behind(fault, prepare_fails, prepare, publish, monkeypatch, tmp_path):
    made = publish("eurosat")
    good = publish.server.files["/eurosat/EuroSAT.zip"]
    members = {f"2750/{path}": content for path, content in files_below(made / "2750").items()}
    if fault == "unsafe":
        members["../../outside.jpg"] = b"x"
    elif fault == "images missing":
        members.popitem()
    elif fault == "no folder":
        members = {path.replace("2750", "images"): content for path, content in members.items()}
    elif fault == "no name":
        members["unnamed"] = b"x"
    content = zipped(tmp_path / "bad.zip", members).read_bytes().replace(b"unnamed", b"\0nnamed")  # that ends a name
    content = {"wrong checksum": good[:-1] + b"x", "truncated": good[:-5]}.get(fault, content)
    publish.server.files["/eurosat/EuroSAT.zip"] = content
    if fault != "wrong checksum":  # no checksum is published
        change_file(monkeypatch, "eurosat", "EuroSAT.zip", md5="", bytes=0, about=1 << 20)
    publish.server.faults = ["", "quota page"] if fault == "quota page" else []
    words = {
        "wrong checksum": "md5 is wrong",
        "truncated": "incomplete, or not an archive",
        "unsafe": "outside",
        "no name": "it has a file with the name ''",
        "quota page": "a web page",
    }
    words |= {"images missing": "1 images of the split are not in it", "no folder": "no folder 2750 in it"}
    prepare_fails(["eurosat"], words[fault])
    assert all_below(tmp_path / "data") == {"eurosat", "eurosat/split_zhou_EuroSAT.json"}
    assert not (tmp_path / "outside.jpg").exists()

    publish.server.files["/eurosat/EuroSAT.zip"] = good
    assert prepare("eurosat").status == 0 and prepare("--check", "eurosat").status == 0


def test_unpacked_images_are_removed_when_a_later_archive_is_refused(prepare_fails, publish, monkeypatch, tmp_path):
    made, folder = publish("stanford_cars"), tmp_path / "data/stanford_cars"
    folder.mkdir(parents=True)
    images = {f"cars_train/{name}": data for name, data in files_below(made / "cars_train").items()}
    size = tar(folder / "cars_train.tgz", images).stat().st_size
    change_file(monkeypatch, "stanford_cars", "cars_train.tgz", bytes=size, md5="")
    (folder / "cars_test.tgz").write_bytes(b"another file")
    prepare_fails(["stanford_cars"], f"{folder}/cars_test.tgz is not the published file")
    assert all_below(folder) == {"cars_train.tgz", "cars_test.tgz", "split_zhou_StanfordCars.json"}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["named pipe", "folder"])
def test_special_file_as_an_image_blocks_the_preparation(make, prepare, prepare_fails, publish, tmp_path):
    shutil.copytree(publish("dtd"), tmp_path / "data/dtd")
    image = sorted((tmp_path / "data/dtd/images").rglob("*.jpg"))[0]
    image.unlink()
    make(image)
    suggestion = f"move {image} elsewhere, then: python tools/prepare.py dtd --root {tmp_path}/data"
    prepare_fails(["dtd"], suggestion)
    assert f"-> {suggestion}" in prepare_fails(["--check", "dtd"], "datasets are incomplete or wrong")
    assert publish.server.requests == []
    image.rename(tmp_path / "elsewhere")
    assert prepare("dtd").status == 0 and prepare("--check", "dtd").status == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"train": []}', b"<!DOCTYPE html><html>quota</html>"])
def test_invalid_downloaded_split_is_rejected(content, prepare_fails, publish, monkeypatch, tmp_path):
    publish("eurosat")
    change_file(monkeypatch, "eurosat", "split_zhou_EuroSAT.json", md5="", bytes=0)
    publish.server.files["/eurosat/split_zhou_EuroSAT.json"] = content
    prepare_fails(["eurosat"], "split_zhou_EuroSAT.json")
    assert not (tmp_path / "data").exists()


def test_damaged_local_split_is_not_overwritten(prepare_fails, publish, tmp_path):
    shutil.copytree(publish("eurosat"), tmp_path / "data/eurosat")
    split = tmp_path / "data/eurosat/split_zhou_EuroSAT.json"
    split.write_text("{")
    suggestion = f"move {split} elsewhere, then: python tools/prepare.py eurosat"
    prepare_fails(["eurosat"], suggestion)
    assert split.read_text() == "{"
    shutil.rmtree(tmp_path / "data/eurosat/2750")  # nothing is downloaded then
    prepare_fails(["eurosat"], suggestion)
    assert f"-> {suggestion}" in prepare_fails(["--check", "eurosat"], "datasets are incomplete or wrong")
    assert publish.server.requests == []


def test_split_with_unpublished_images_keeps_the_download(prepare_fails, prepare, publish, tmp_path):
    made = publish("eurosat")
    split = tmp_path / "data/eurosat/split_zhou_EuroSAT.json"
    split.parent.mkdir(parents=True)
    split.write_text((made / split.name).read_text().replace("Forest_2.jpg", "Forest_9.jpg"))
    prepare_fails(
        ["eurosat"],
        f"{split} names 1 images that are not in the published EuroSAT.zip, the first 2750/Forest/Forest_9.jpg",
        f"move it elsewhere, then: python tools/prepare.py eurosat --root {tmp_path}/data",
    )
    split.rename(tmp_path / "elsewhere")
    assert prepare("eurosat").status == 0 and prepare("--check", "eurosat").status == 0
    assert [path for path, _ in publish.server.requests] == ["/eurosat/EuroSAT.zip", f"/eurosat/{split.name}"]


def test_truncated_local_archive_is_kept(prepare_fails, publish, monkeypatch, tmp_path):
    publish("ucf101")
    archive, given = downloadable()["ucf101"].files[1], tmp_path / "given"
    given.mkdir()
    (given / archive.name).write_bytes(publish.server.files[f"/ucf101/{archive.name}"][:-9])
    change_file(monkeypatch, "ucf101", archive.name, bytes=0, md5="")
    prepare_fails(
        ["ucf101", "--from", given],
        "incomplete, or not an archive",
        f": download it from elsewhere and put it into {given}",
    )
    assert (given / archive.name).is_file()


def test_suggestion_of_check_fills_an_empty_class_folder(prepare, prepare_fails, publish, tmp_path):
    shutil.copytree(publish("imagenet_r"), tmp_path / "data/imagenet-rendition")
    for image in (tmp_path / "data/imagenet-rendition/imagenet-r/n02012849").iterdir():
        image.unlink()
    command = f"python tools/prepare.py imagenet_r --root {tmp_path}/data --repair"
    assert f"-> {command}\n" in prepare_fails(["--check", "imagenet_r"], "datasets are incomplete or wrong")
    prepare_fails(["imagenet_r"], "no images in", command)
    assert prepare("imagenet_r", "--repair").status == 0 and prepare("--check", "imagenet_r").status == 0


def test_unknown_class_folder_blocks_the_preparation(prepare_fails, publish, tmp_path):
    shutil.copytree(publish("imagenetv2"), tmp_path / "data/imagenetv2")
    folder = tmp_path / "data/imagenetv2/imagenetv2-matched-frequency-format-val/cats"
    folder.mkdir()
    suggestion = f"move {folder} elsewhere, then: python tools/prepare.py imagenetv2"
    prepare_fails(["imagenetv2"], f"{folder} is not one of the 4 classes in", suggestion)
    assert f"-> {suggestion}" in prepare_fails(["--check", "imagenetv2"], "datasets are incomplete or wrong")


@pytest.mark.parametrize("place", ["dtd/images", "dtd"])
def test_broken_link_blocks_the_preparation(place, prepare_fails, publish, tmp_path):
    publish("dtd")
    link = tmp_path / "data" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "a disk that is not there")
    suggestion = f"move {link} elsewhere, then: python tools/prepare.py dtd --root {tmp_path}/data"
    prepare_fails(["dtd"], suggestion)
    assert f"-> {suggestion}" in prepare_fails(["--check", "dtd"], "datasets are incomplete or wrong")
    assert publish.server.requests == []


def test_images_are_added_on_another_disk(prepare, publish, monkeypatch, tmp_path):
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


def test_full_disk_is_reported_before_downloads(prepare_fails, publish, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    prepare_fails(["eurosat", "sun397"], "78.2 GB are needed", "0.0 GB are free", "choose another --root")
    assert publish.server.requests == [] and not (tmp_path / "data").exists()


def test_full_disk_or_protected_folder(prepare_fails, prepare, publish, monkeypatch, tmp_path):
    publish("eurosat")
    write = unpack.write

    def full(member, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(unpack, "write", full)
    prepare_fails(["eurosat"], "No space left on device: fix this")
    monkeypatch.setattr(unpack, "write", write)
    assert prepare("eurosat").status == 0
    images = tmp_path / "data/eurosat/2750/Forest"
    scandir = os.scandir

    def locked(path="."):
        if str(path) == str(images):  # the user may be root
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", locked)
        for command in (["--check", "eurosat"], ["--list", "eurosat"], ["eurosat"]):
            prepare_fails(command, f"{images}: Permission denied: fix this or choose another --root")
    (tmp_path / "file").write_text("in the way")
    prepare_fails(["eurosat"], f"{tmp_path}/file", "choose another --root", root=tmp_path / "file/data")


def test_resume_after_interrupt(prepare, publish, monkeypatch, tmp_path):
    made = publish("eurosat")
    write, written = unpack.write, []

    def interrupted(member, path):
        written.append(path)
        if len(written) == 5:
            os.kill(os.getpid(), signal.SIGTERM)  # as Ctrl-C, but also in the background
        write(member, path)

    monkeypatch.setattr(unpack, "write", interrupted)
    status, _, errors = prepare("eurosat")
    assert (status, errors) == (130, ["Interrupted. Run the same command again to resume where it stopped."])
    assert not (tmp_path / "data/eurosat/2750").exists()
    preparation = Preparation(downloadable()["eurosat"], tmp_path / "data")
    there = sum(path.stat().st_size for path in preparation.staged.rglob("*.jpg"))
    assert there and preparation.space() == (downloadable()["eurosat"].files[1].size - there, 0)
    assert prepare("eurosat").status == 0
    assert files_below(tmp_path / "data/eurosat") == files_below(made)
    assert [path for path, _ in publish.server.requests].count("/eurosat/EuroSAT.zip") == 1


def test_one_process_at_a_time(publish, tmp_path):
    made = publish("eurosat")
    folder = tmp_path / "data/eurosat"
    folder.mkdir(parents=True)
    preparation = Preparation(downloadable()["eurosat"], tmp_path / "data", mirror=publish.server.address)
    thread = threading.Thread(target=preparation.run)
    with FileLock(folder / LOCK, is_singleton=False):  # of another process, which prepares it meanwhile
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and publish.server.requests == []
        shutil.copytree(made, folder, dirs_exist_ok=True)
    thread.join()
    assert publish.server.requests == [] and files_below(folder) == files_below(made)


def test_failure_does_not_stop_other_datasets(prepare_fails, publish, tmp_path):
    publish("eurosat")
    printed = prepare_fails(
        ["imagenet", "dtd", "eurosat"], "2 of 3 datasets could not be prepared", mirror=publish.server.address
    )
    assert "dtd: cannot download split_zhou_DescribableTextures.json" in printed and "eurosat: ready: " in printed
    assert "imagenet: cannot download classnames.txt" in printed
