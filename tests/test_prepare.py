"""tools/prepare.py: from published files to datasets that a run can read.

The published files come from a server on the loopback address: tests/published.py.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
import torchvision.datasets
from dassl.data.datasets import DATASET_REGISTRY
from drawn import write_eurosat
from marks import of_json, to_json
from PIL import Image
from published import PACKED, all_below, listing
from trees import NAMES

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
