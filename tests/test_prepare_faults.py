"""Failures of tools/prepare.py: one line, exit status 2, no unfinished files."""

import errno
import os
import shutil
import signal
import threading
import zipfile

import pytest
from archives import zipped
from filelock import FileLock
from published import all_below, change_file, files_below

from datasets.preparing.arrange import LOCK, Preparation
from datasets.preparing.sources import downloadable


def test_invalid_arguments(prepare_fails, tmp_path):
    prepare_fails([], "no dataset is given")
    prepare_fails(["eurosatt"], "there is no dataset 'eurosatt': did you mean eurosat?")
    prepare_fails(["fewshot"], "fewshot DATASET")
    prepare_fails(["fewshot", "imagenet_a"], "imagenet_a has test images only")
    prepare_fails(["--check", "dtd", "--root", "~nobody"], "datasets are incomplete or wrong")
    prepare_fails(["dtd", "--from", tmp_path / "none"], "no folder")
    prepare_fails(["fewshot", "dtd"], f"python tools/prepare.py dtd --root {tmp_path}/data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("option", [("--seed", -1), ("--seed", 2**33), ("--shots", 0)])
def test_invalid_few_shot_numbers(option, prepare):
    status, _, errors = prepare("fewshot", "dtd", *option)
    assert status == 2 and str(option[1]) in errors[-1]


def test_an_empty_folder_is_not_the_current_one(prepare, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, _, errors = prepare("small_land", root="")
    assert status == 2 and errors[-1].endswith("argument --root: expected a path (. for the current folder)")
    assert not (tmp_path / "small_land").exists()


def test_a_failed_download_leaves_no_folders(prepare_fails, publish, tmp_path):
    publish("eurosat")
    publish.server.faults = ["not found"]
    prepare_fails(
        ["eurosat"], "404", f"put split_zhou_EuroSAT.json into {tmp_path}/data/eurosat manually, then: python tools"
    )
    assert not (tmp_path / "data").exists()


FAULTS = {
    "wrong checksum": "md5 is wrong",
    "truncated": "incomplete, or not an archive",
    "unsafe": "outside",
    "images missing": "1 images of the split are not in EuroSAT.zip",
    "no folder": "no folder 2750 in it",
}


@pytest.mark.parametrize("fault", FAULTS)
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
    content = {"wrong checksum": good[:-1] + b"x", "truncated": good[:-5]}.get(fault)
    publish.server.files["/eurosat/EuroSAT.zip"] = content or zipped(tmp_path / "bad.zip", members).read_bytes()
    if fault != "wrong checksum":  # no checksum is published
        change_file(monkeypatch, "eurosat", "EuroSAT.zip", md5="", bytes=0, about=1 << 20)
    prepare_fails(["eurosat"], FAULTS[fault])
    kept = {"eurosat/.preparing", "eurosat/.preparing/EuroSAT.zip"} if fault == "images missing" else set()
    assert all_below(tmp_path / "data") == {"eurosat", "eurosat/split_zhou_EuroSAT.json"} | kept
    assert not (tmp_path / "outside.jpg").exists()
    if kept:  # as the split may be the wrong file
        shutil.rmtree(tmp_path / "data/eurosat/.preparing")

    publish.server.files["/eurosat/EuroSAT.zip"] = good
    assert prepare("eurosat").status == 0 and prepare("--check", "eurosat").status == 0


def test_special_file_as_an_image_is_neither_read_nor_replaced(prepare, prepare_fails, publish, tmp_path):
    shutil.copytree(publish("dtd"), tmp_path / "data/dtd")
    image = sorted((tmp_path / "data/dtd/images").rglob("*.jpg"))[0]
    image.unlink()
    os.mkfifo(image)
    name = image.relative_to(tmp_path / "data/dtd")
    prepare_fails(["dtd"], f"1 images are missing, the first {name}: move {tmp_path}/data/dtd elsewhere, then: python")
    assert image.is_fifo()


@pytest.mark.parametrize("content", [b"", b'{"train": []}', b"<!DOCTYPE html><html>quota</html>"])
def test_invalid_downloaded_split_is_rejected(content, prepare_fails, publish, monkeypatch, tmp_path):
    publish("eurosat")
    change_file(monkeypatch, "eurosat", "split_zhou_EuroSAT.json", md5="", bytes=0)
    publish.server.files["/eurosat/split_zhou_EuroSAT.json"] = content
    prepare_fails(["eurosat"], "split_zhou_EuroSAT.json")
    assert not (tmp_path / "data").exists()


def test_damaged_local_split_is_not_overwritten(prepare_fails, publish, tmp_path):
    split = tmp_path / "data/eurosat/split_zhou_EuroSAT.json"
    split.parent.mkdir(parents=True)
    split.write_text("{")
    publish("eurosat")
    suggestion = f"move {split} elsewhere, then: python tools/prepare.py eurosat"
    prepare_fails(["eurosat"], suggestion)
    assert f"-> {suggestion}" in prepare_fails(["--check", "eurosat"], "datasets are incomplete or wrong")
    assert split.read_text() == "{" and publish.server.requests == []


def test_split_with_unpublished_images_keeps_the_download(prepare_fails, prepare, publish, tmp_path):
    made = publish("eurosat")
    split = tmp_path / "data/eurosat/split_zhou_EuroSAT.json"
    split.parent.mkdir(parents=True)
    split.write_text((made / split.name).read_text().replace("Forest_2.jpg", "Forest_9.jpg"))
    what = "1 images of the split are not in EuroSAT.zip, the first 2750/Forest/Forest_9.jpg"
    remedy = f"move {split} or {split.parent}/.preparing elsewhere, then: python tools/prepare.py eurosat --root"
    prepare_fails(["eurosat"], f"{what}: {remedy} {tmp_path}/data")
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
        f": download it again, or from elsewhere, and put it into {tmp_path}/data/ucf101",
    )
    assert (given / archive.name).is_file()


def test_wrong_class_folders_are_not_changed(prepare_fails, publish, tmp_path):
    source = downloadable()["imagenetv2"]
    shutil.copytree(publish("imagenetv2"), source.folder(tmp_path / "data"))
    wrong = source.folder(tmp_path / "data") / source.dataset.image_dir / "cats"
    wrong.mkdir()
    suggestion = f"move {wrong} elsewhere, then: python tools/prepare.py imagenetv2 --root {tmp_path}/data"
    prepare_fails(["imagenetv2"], suggestion)
    assert f"-> {suggestion}\n" in prepare_fails(["--check", "imagenetv2"], "datasets are incomplete or wrong")
    assert publish.server.requests == []


def test_broken_link_blocks_the_preparation(prepare_fails, publish, tmp_path):
    """Before any download: the disk with the images may not be mounted."""
    shutil.copytree(publish("dtd"), tmp_path / "data/dtd")
    link = tmp_path / "data/dtd/images"
    shutil.rmtree(link)
    link.symlink_to(tmp_path / "a disk that is not there")
    prepare_fails(["dtd"], f"{link}: is not a folder: move {link} elsewhere, then: python tools/prepare.py dtd --root")
    assert publish.server.requests == []


def test_full_disk_is_reported_before_downloads(prepare_fails, publish, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    prepare_fails(["sun397"], "78.2 GB are needed", "0.0 GB are free", "choose another --root")
    assert publish.server.requests == [] and not (tmp_path / "data").exists()


def test_full_disk_or_protected_folder(prepare_fails, publish, monkeypatch, tmp_path):
    publish("eurosat")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extract", full)
        prepare_fails(["eurosat"], "No space left on device: fix this or choose another --root")
    assert all_below(tmp_path / "data/eurosat/.preparing") == {"EuroSAT.zip"}
    (tmp_path / "file").write_text("in the way")
    prepare_fails(["eurosat"], f"{tmp_path}/file", "choose another --root", root=tmp_path / "file/data")


def test_interrupt_while_unpacking_leaves_only_the_download(prepare, publish, monkeypatch, tmp_path):
    made, extract, written = publish("eurosat"), zipfile.ZipFile.extract, []

    def interrupted(self, member, path):
        written.append(member)
        if len(written) == 5:
            os.kill(os.getpid(), signal.SIGTERM)  # as Ctrl-C, but also in the background
        return extract(self, member, path)

    monkeypatch.setattr(zipfile.ZipFile, "extract", interrupted)
    status, _, errors = prepare("eurosat")
    assert (status, errors) == (130, ["Interrupted. Run the same command again to resume where it stopped."])
    left = {".preparing", ".preparing/EuroSAT.zip", "split_zhou_EuroSAT.json"}
    assert all_below(tmp_path / "data/eurosat") == left
    (tmp_path / "data/eurosat/.preparing/unpacked/raw/half").mkdir(parents=True)  # as after SIGKILL
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


def test_folder_without_permission_to_write(prepare):
    """Nobody, root included, can write to /proc/self."""
    status, printed, _ = prepare("--check", "small_shapes", root="/proc/self")
    assert status == 2 and "cannot draw SmallShapes: cannot write to /proc/self/small_shapes (No such" in printed


def test_failure_does_not_stop_other_datasets(prepare_fails, publish, tmp_path):
    publish("eurosat")
    printed = prepare_fails(
        ["imagenet", "dtd", "eurosat"], "2 of 3 datasets could not be prepared", mirror=publish.server.address
    )
    assert "dtd: cannot download split_zhou_DescribableTextures.json" in printed and "eurosat: ready: " in printed
    assert "imagenet: cannot download classnames.txt" in printed
