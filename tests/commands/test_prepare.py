"""tools/prepare.py: from published files to datasets that a run can read.

The published files come from a server on the loopback address: tests/helpers/published.py.
"""

import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import torchvision.datasets
from archives import zipped
from dassl.data.datasets import DATASET_REGISTRY
from drawn import write_eurosat
from filelock import FileLock
from marks import of_json, to_json
from PIL import Image
from published import PACKED, V2, all_below, change_file, files_below, listing
from trees import NAMES

from datasets.preparing.arrange import LOCK, Preparation
from datasets.preparing.sources import downloadable


@pytest.mark.parametrize("name", NAMES)
def test_each_dataset_is_prepared_from_its_archives(name, prepare, publish, capsys, tmp_path):
    made = publish(name)
    status, printed, errors = prepare(name)
    assert (status, errors) == (0, []), errors
    assert f"{name}: ready: " in printed and " 0 images" not in printed

    folder = tmp_path / "data" / made.name
    places = PACKED[name][1] if name in PACKED else ("images/train", "images/val")
    assert listing(folder, places) == listing(made, places)
    assert ".preparing" not in os.listdir(folder)

    status, printed, errors = prepare("--check", name)
    assert (status, errors) == (0, []), printed
    assert "4 classes, as published" in printed and "nothing is wrong" in printed
    # As a run reads it
    assert downloadable()[name].read(tmp_path / "data", images=True).num_classes == 4
    capsys.readouterr()

    publish.server.requests.clear()
    assert prepare(name) == (0, f"{name}: ready\n", []) and publish.server.requests == []


def test_a_synthetic_dataset_is_drawn(prepare, tmp_path):
    status, printed, _ = prepare("small_textures")
    assert status == 0 and "400 images for test, 10 classes" in printed
    assert len([*tmp_path.glob("data/small_textures/images/*/*.png")]) == 600


def test_files_agree_with_torchvision():
    known = {
        "oxford_pets": torchvision.datasets.OxfordIIITPet._RESOURCES[0],
        "food101": (torchvision.datasets.Food101._URL, torchvision.datasets.Food101._MD5),
        "fgvc_aircraft": (torchvision.datasets.FGVCAircraft._URL, ""),
        "sun397": (
            torchvision.datasets.SUN397._DATASET_URL,
            torchvision.datasets.SUN397._DATASET_MD5,
        ),
        "dtd": (torchvision.datasets.DTD._URL, torchvision.datasets.DTD._MD5),
    }
    for name, pair in known.items():
        assert (downloadable()[name].files[-1].url, downloadable()[name].files[-1].md5) == pair
    imagenet = {file.name: file.md5 for file in downloadable()["imagenet"].files}
    assert imagenet.items() >= dict(torchvision.datasets.imagenet.ARCHIVE_META.values()).items()
    assert set(downloadable()) == set(NAMES)
    for source in downloadable().values():
        dataset = source.dataset
        assert dataset.licence and dataset.page.startswith("https://")
        assert all(
            file.size and (file.link or dataset.manual_steps or "cars" in file.name)
            for file in source.files
        )


def test_missing_images_are_added_and_nothing_else_changes(prepare, publish, tmp_path):
    made = publish("dtd")
    folder = tmp_path / "data/dtd"
    shutil.copytree(made, folder)
    images = sorted((folder / "images").rglob("*.jpg"))
    images[0].unlink()
    images[5].write_bytes(b"changed by its owner")
    (folder / "images/mine.jpg").write_bytes(b"extra")
    split = (folder / "split_zhou_DescribableTextures.json").stat().st_mtime_ns
    status, printed, errors = prepare("--check", "dtd", "--quick")
    assert status == 2 and "incomplete or wrong: 1 of 1 datasets" in errors[0]
    assert f"images missing (1): {images[0]}" in printed
    assert printed.rstrip().endswith(f"-> python tools/prepare.py dtd --root {tmp_path}/data")

    prepare.works("dtd")
    assert images[0].read_bytes() == (made / images[0].relative_to(folder)).read_bytes()
    assert (
        images[5].read_bytes() == b"changed by its owner" and (folder / "images/mine.jpg").exists()
    )
    assert (folder / "split_zhou_DescribableTextures.json").stat().st_mtime_ns == split


def unreadable(folder):
    Image.new("F", (5, 5)).save(folder / "2750/Forest/Forest_2.jpg", "TIFF")
    Image.new("CMYK", (5, 5)).save(folder / "2750/River/River_2.jpg")  # a run can read it


def without_a_row(folder):
    split = folder / "split_zhou_EuroSAT.json"
    rows = of_json(split)
    to_json(split, rows | {"test": rows["test"][1:]})


@pytest.mark.parametrize(
    ("name", "harm", "found", "moved"),
    [
        (
            "eurosat",
            unreadable,
            "images unreadable (1): FOLDER/2750/Forest/Forest_2.jpg (",
            "/2750",
        ),
        ("eurosat", without_a_row, "7 images for test instead of 8", "/split_zhou_EuroSAT.json"),
        (
            "imagenet_a",
            lambda folder: next(folder.rglob("*.jpg")).unlink(),
            "7 images for test instead of 8",
            "",
        ),
    ],
)
def test_check_finds_what_is_wrong_and_its_remedy_works(
    name, harm, found, moved, prepare, publish, tmp_path
):
    folder = downloadable()[name].folder(tmp_path / "data")
    shutil.copytree(publish(name), folder)
    harm(folder)
    assert prepare("--check", name, "--quick").status == (0 if harm is unreadable else 2)
    status, printed, _ = prepare("--check", name)
    assert status == 2 and f"\n  {found.replace('FOLDER', str(folder))}" in printed
    command = f"python tools/prepare.py {name} --root {tmp_path}/data"
    assert printed.endswith(f"\n  -> move {folder}{moved} elsewhere, then: {command}\n")
    Path(f"{folder}{moved}").rename(tmp_path / "elsewhere")
    assert prepare(name).status == 0 and prepare("--check", name).status == 0


def test_check_of_a_split_counts_gaps_and_images_in_two_parts(prepare, tmp_path, monkeypatch):
    # A dataset that nobody has published
    monkeypatch.setattr(DATASET_REGISTRY.get("EuroSAT"), "counts", None)
    file = write_eurosat(tmp_path / "data", ["red", "green", "blue"])
    rows = of_json(file)
    shutil.copy(
        tmp_path / "data/eurosat/2750/0/train_0.png", tmp_path / "data/eurosat/2750/0/test_0.png"
    )
    to_json(
        file, {part: [[path, 2 * label, name] for path, label, name in rows[part]] for part in rows}
    )
    ended = prepare("--check", "eurosat")
    assert ended.status == 2 and "  no class has the label 1, 3\n" in ended.printed
    assert re.search(
        r"images in several parts, by their pixels \(1\): \S+/train_0.png = \S+/test_0.png",
        ended.printed,
    )


# Few-shot choices


def test_fewshot_needs_only_the_split(prepare, publish, capsys, tmp_path):
    (tmp_path / "data/caltech-101").mkdir(parents=True)
    shutil.copy(publish("caltech101") / "split_zhou_Caltech101.json", tmp_path / "data/caltech-101")
    status, printed, _ = prepare("fewshot", "caltech101", "--seed", 2, "--shots", 2)
    lines = printed.splitlines()
    data = downloadable()["caltech101"].read(tmp_path / "data", "DATASET.NUM_SHOTS", "2", seed=2)
    capsys.readouterr()
    parts = {"train": data.train_x, "val": data.val}
    below = [
        f"{part} {os.path.relpath(item.impath, data.images)}"
        for part in parts
        for item in parts[part]
    ]
    assert status == 0 and len(lines) == 4 * 2 + 4 * 1 and lines == below
    base = prepare(
        "fewshot", "caltech101", "--seed", 2, "--shots", 2, "--classes", "base"
    ).printed.splitlines()
    assert base == lines[:4] + lines[8:10]


# Manual downloads


def test_imagenet_from_manual_downloads(prepare_fails, prepare, publish, monkeypatch, tmp_path):
    publish("imagenet")
    words = ["ILSVRC2012_img_val.tar, ILSVRC2012_img_train.tar, ILSVRC2012_devkit_t12.tar.gz"]
    words += [
        "https://image-net.org/download-images.php",
        f"into {tmp_path}/data/imagenet, then: python tools/prepare.py",
    ]
    said = prepare_fails(["imagenet"], *words, mirror="")
    assert said == "" and not (tmp_path / "data").exists()
    given = tmp_path / "given"
    given.mkdir()
    for path, content in publish.server.files.items():
        (given / Path(path).name).write_bytes(content)
    (given / "ILSVRC2012_devkit_t12.tar.gz").rename(tmp_path / "kit")
    prepare_fails(["imagenet", "--from", given], "put ILSVRC2012_devkit_t12.tar.gz (", mirror="")
    kit = given / "ILSVRC2012_devkit_t12.tar.gz"
    (tmp_path / "kit").rename(kit)
    before = all_below(given)
    prepare.works("imagenet", "--from", given, mirror="")
    assert prepare("--check", "imagenet").status == 0 and all_below(given) == before


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
def test_a_wrong_archive_is_named_and_not_downloaded(
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
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        prepare_fails(["sun397"], "78.2 GB are needed", "0.0 GB are free", "choose another --root")
    assert publish.server.requests == [] and not (tmp_path / "data").exists()


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
