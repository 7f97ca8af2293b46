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
from published import V2, all_below, change_file, files_below

from datasets.preparing.arrange import LOCK, Preparation
from datasets.preparing.sources import downloadable


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no dataset is given"),
        (["eurosatt"], "there is no dataset 'eurosatt': did you mean eurosat?"),
        (["fewshot"], "fewshot DATASET"),
        (["fewshot", "imagenet_a"], "imagenet_a has test images only"),
        (["--check", "dtd", "--root", "~nobody"], "datasets are incomplete or wrong"),
        (["dtd", "--from", "nowhere"], "no folder nowhere"),
        (["fewshot", "dtd"], "python tools/prepare.py dtd --root"),
    ],
)
def test_invalid_arguments(arguments, words, prepare_fails, tmp_path):
    prepare_fails(arguments, words)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", -1], "expected an integer >= 0, got '-1'"),
        (["--seed", 2**33], f"{2**33}"),
        (["--shots", 0], "expected an integer >= 1, got '0'"),
        (["--root", ""], "argument --root: expected a path (. for the current folder)"),
    ],
)
def test_invalid_values(arguments, words, prepare):
    status, _, errors = prepare("fewshot", "dtd", *arguments)
    assert status == 2 and words in errors[-1]


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


SPLIT = "split_zhou_EuroSAT.json"


@pytest.mark.parametrize(
    ("fault", "content", "words"),
    [
        ("not found", b"", ["404", f": run the same command again, or put {SPLIT} into FOLDER manually, then: python"]),
        *(("", text, ["incomplete or another file: download it from https://drive.google.com", "put it into FOLDER"])
          for text in (b"{", b'{"train": []}', b"<!DOCTYPE html><html>quota</html>")),
    ],
)  # fmt: skip
def test_a_failed_or_wrong_download_leaves_no_folders(
    fault, content, words, prepare_fails, publish, monkeypatch, tmp_path
):
    publish("eurosat")
    change_file(monkeypatch, "eurosat", SPLIT, md5="", bytes=0)
    publish.server.files[f"/eurosat/{SPLIT}"], publish.server.faults = content, [fault]
    prepare_fails(["eurosat"], *(word.replace("FOLDER", f"{tmp_path}/data/eurosat") for word in words))
    assert not (tmp_path / "data").exists()


def replaced_by_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def replaced_by_a_broken_link(path):
    """The disk with the images may not be mounted."""
    shutil.rmtree(path)
    path.symlink_to("a disk that is not there")


@pytest.mark.parametrize(
    ("name", "place", "harm", "moved", "words"),
    [
        ("dtd", "images/banded/banded_0001.jpg", replaced_by_a_pipe, "", "1 images are missing, the first images/b"),
        ("dtd", "images", replaced_by_a_broken_link, "images", "images: is not a folder"),
        ("eurosat", SPLIT, lambda path: path.write_text("{"), SPLIT, "is damaged"),
        ("imagenetv2", f"{V2}/cats", lambda path: path.mkdir(), f"{V2}/cats", "is not one of the 4 classes"),
    ],
)
def test_what_is_in_the_way_is_neither_changed_nor_replaced(
    name, place, harm, moved, words, prepare_fails, publish, tmp_path
):
    folder = tmp_path / "data" / name
    shutil.copytree(publish(name), folder)
    harm(folder / place)
    before = all_below(folder)
    remedy = f"move {folder / moved} elsewhere, then: python tools/prepare.py {name} --root {tmp_path}/data"
    prepare_fails([name], words, remedy)
    if name in ("eurosat", "imagenetv2"):
        assert f"-> {remedy}\n" in prepare_fails(["--check", name], "datasets are incomplete or wrong")
    assert all_below(folder) == before
    assert publish.server.requests == [] or harm is replaced_by_a_pipe  # which only the final check tells from an image


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


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, ["is not the published file (it has 10 bytes, ", "): download it again, or delete it"]),
        ({"bytes": 10, "md5": "0"}, ["is not the published file (its md5 is wrong): download it again, or delete it"]),
        ({"bytes": 0, "md5": ""}, ["incomplete, or not an archive", ": download it again, or from elsewhere, and put"]),
    ],
)
def test_wrong_local_file_is_refused_and_kept(facts, words, prepare_fails, publish, monkeypatch, tmp_path):
    made, given = publish("eurosat"), tmp_path / "given/EuroSAT.zip"
    given.parent.mkdir()
    given.write_bytes(b"half of it")
    change_file(monkeypatch, "eurosat", given.name, **facts)
    folder = tmp_path / "data/eurosat"
    folder.mkdir(parents=True)
    shutil.copy(made / SPLIT, folder)
    prepare_fails(["eurosat", "--from", given.parent], given, *words)
    assert given.is_file() and all_below(folder) == {SPLIT}


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
    printed = prepare_fails(["imagenet", "dtd", "eurosat"], "2 of 3 datasets could not be prepared")
    assert "dtd: cannot download split_zhou_DescribableTextures.json" in printed and "eurosat: ready: " in printed
    assert "imagenet: cannot download classnames.txt" in printed
