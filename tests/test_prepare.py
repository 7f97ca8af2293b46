"""tools/prepare.py: from archives as they are published to datasets that a run can read, and what can go wrong.

A server on the loopback address stands for the network; it has miniature datasets (tests/trees.py) in archives of the
original names and folders.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from archives import tar, zipped
from PIL import Image
from scipy.io import savemat
from serving import serving
from trees import NAMES, WNIDS, build_tree

import train
from tools import prepare
from tools.preparing import fetch, unpack
from tools.preparing.arrange import Preparation
from tools.preparing.sources import dataset_class, named_images, read_quietly, table

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared/data"
V2 = "imagenetv2-matched-frequency-format-val"
PACKED = {  # the archive of each dataset: {folder of the dataset: its path in there}
    "caltech101": ("101_ObjectCategories.tar.gz", {"101_ObjectCategories": "101_ObjectCategories"}),
    "oxford_pets": ("images.tar.gz", {"images": "images"}),
    "stanford_cars": ("stanford-cars.tgz", {part: f"stanford-cars/{part}" for part in ("cars_train", "cars_test")}),
    "oxford_flowers": ("102flowers.tgz", {"jpg": "jpg"}),
    "food101": ("food-101.tar.gz", {"images": "food-101/images", "meta": "food-101/meta"}),
    "fgvc_aircraft": ("fgvc-aircraft-2013b.tar.gz", {"": "fgvc-aircraft-2013b/data"}),
    "sun397": ("SUN397.tar.gz", {"SUN397": "SUN397"}),
    "dtd": ("dtd-r1.0.1.tar.gz", {"images": "dtd/images", "labels": "dtd/labels"}),
    "eurosat": ("EuroSAT.zip", {"2750": "2750"}),
    "ucf101": ("UCF-101-midframes.zip", {"UCF-101-midframes": "UCF-101-midframes"}),
    "imagenetv2": ("imagenetv2-matched-frequency.tar.gz", {V2: V2}),
    "imagenet_sketch": ("ImageNet-Sketch.zip", {"images": "sketch"}),
    "imagenet_a": ("imagenet-a.tar", {"imagenet-a": "imagenet-a"}),
    "imagenet_r": ("imagenet-r.tar", {"imagenet-r": "imagenet-r"}),
}  # fmt: skip


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def listing(folder: Path, places) -> list[tuple[str, bytes]]:
    """The class folder and the content of each image in these folders; ImageNet's archive has its own image names."""
    files = [(path, data) for place in places for path, data in files_below(folder / place).items()]
    return sorted((path.rpartition("/")[0], data) for path, data in files if path != "README.txt")


def packed(name: str, made: Path, folder: Path) -> dict[str, bytes]:
    """The files that are published of a dataset which `build_tree` made, by name."""
    folder.mkdir(exist_ok=True)
    if name == "imagenet":
        return packed_imagenet(made, folder)
    archive, places = PACKED[name]
    members = {}
    for place, path in places.items():
        members |= {f"{path}/{below}": content for below, content in files_below(made / place).items()}
    write = zipped if archive.endswith(".zip") else tar
    contents = {archive: write(folder / archive, members, *(["w"] if archive.endswith(".tar") else [])).read_bytes()}
    if name == "caltech101":
        inside = {f"caltech-101/{archive}": contents[archive], "caltech-101/Annotations.tar": b"not wanted"}
        contents = {"caltech-101.zip": zipped(folder / "caltech-101.zip", inside).read_bytes()}
    texts = [*made.glob("split_zhou_*.json"), *made.glob("classnames.txt")]
    return contents | {path.name: path.read_bytes() for path in texts}


def packed_imagenet(made: Path, folder: Path) -> dict[str, bytes]:
    """Tars of tars, a flat tar, and the development kit, whose classes have other numbers than here."""
    train_images = {}
    for wnid in WNIDS:
        path = tar(folder / wnid, files_below(made / "images/train" / wnid), "w")
        train_images[f"{wnid}.tar"] = path.read_bytes()
    numbers = {wnid: number for number, wnid in enumerate(reversed(WNIDS), start=1)}
    val_images = sorted(files_below(made / "images/val").items(), key=lambda item: item[0][::-1])
    flat = {f"ILSVRC2012_val_{n:08}.JPEG": content for n, (_, content) in enumerate(val_images, start=1)}
    truth = "".join(f"{numbers[path.split('/')[0]]}\n" for path, _ in val_images)
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    synsets = [(number, wnid, "a, b", 0) for wnid, number in numbers.items()] + [(1001, "n00001740", "entity", 4)]
    savemat(folder / "meta.mat", {"synsets": np.array(synsets, dtype=fields)[:, None]})
    kit = {"meta.mat": (folder / "meta.mat").read_bytes(), "ILSVRC2012_validation_ground_truth.txt": truth.encode()}
    kit = {f"ILSVRC2012_devkit_t12/data/{name}": content for name, content in kit.items()}
    return {
        "classnames.txt": (made / "classnames.txt").read_bytes(),
        "ILSVRC2012_img_train.tar": tar(folder / "train", train_images, "w").read_bytes(),
        "ILSVRC2012_img_val.tar": tar(folder / "val", flat, "w").read_bytes(),
        "ILSVRC2012_devkit_t12.tar.gz": tar(folder / "kit", kit).read_bytes(),
    }


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """`publish(name)` makes a miniature, has its files on a server, and their sizes and checksums in the table.

    Returns the folder that it was made from. The server is `publish.server`; files of other names are on no server.
    """
    monkeypatch.setattr(fetch, "PAUSE", 0)
    room = shutil.disk_usage(tmp_path)._replace(free=10**13)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    with serving({}) as server:

        def publish(name):
            made = build_tree(name, tmp_path / "made")
            contents = packed(name, made, tmp_path / "packed")
            for file in table()[name].files:
                content = contents.get(file.name, b"")
                server.files[f"/{name}/{file.name}"] = content
                monkeypatch.setattr(file, "bytes", len(content))
                monkeypatch.setattr(file, "md5", hashlib.md5(content).hexdigest())
                monkeypatch.setattr(file, "sha256", "")
            dataset = read_quietly(table()[name], tmp_path / "made")
            counts = tuple(len(items) for items in named_images(dataset).values())
            monkeypatch.setattr(dataset_class(name), "counts", counts)
            monkeypatch.setattr(dataset_class(name), "n_classes", 4)
            return made

        publish.server = server
        yield publish


@pytest.fixture
def run(ended, publish, tmp_path):
    """`run(*arguments)` is tools/prepare.py with `tmp_path/data` as root and the server as mirror: an `Ended`."""

    def run(*arguments, mirror=None, root=tmp_path / "data"):
        argv = [*arguments, "--root", root, "--mirror", publish.server.address if mirror is None else mirror]
        return ended(lambda: train.run(lambda: prepare.main([str(part) for part in argv]), prepare.RESUMPTION))

    return run


@pytest.fixture
def fails(run, tmp_path):
    """`fails(arguments, *words)`: it ends in one line with these words, exit status 2."""

    def fails(arguments, *words, **how):
        status, printed, errors = run(*arguments, **how)
        assert (status, len(errors)) == (2, 1), errors
        assert errors[0].startswith("error: ")
        assert [word for word in map(str, words) if word not in errors[0]] == [], errors[0]
        return printed

    return fails


def all_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# What goes well


@pytest.mark.parametrize("name", NAMES)
def test_each_dataset_comes_from_its_archives_and_is_sound(name, run, publish, capsys, tmp_path):
    made = publish(name)
    status, printed, errors = run(name)
    assert (status, errors) == (0, []), errors
    assert f"{name}: ready: " in printed

    folder = tmp_path / "data" / made.name
    places = PACKED[name][1] if name in PACKED else ("images/train", "images/val")
    assert listing(folder, places) == listing(made, places)
    assert ".preparing" not in os.listdir(folder)

    status, printed, errors = run("--check", name)
    assert (status, errors) == (0, []), printed
    assert "4 classes, as published" in printed and "nothing is wrong" in printed
    assert table()[name].read(tmp_path / "data", images=True).num_classes == 4  # as a run reads it
    capsys.readouterr()

    publish.server.requests.clear()
    assert run(name) == (0, f"{name}: ready\n", []) and publish.server.requests == []


def test_files_come_from_their_own_addresses_without_a_mirror(run, publish, monkeypatch, tmp_path):
    publish("eurosat")
    split, archive = table()["eurosat"].files
    monkeypatch.setattr(archive, "url", f"{publish.server.address}/eurosat/EuroSAT.zip")

    def download(id, output, resume):
        assert id == "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"
        Path(output).write_bytes(publish.server.files[f"/eurosat/{split.name}"])

    monkeypatch.setattr(fetch.gdown, "download", download)
    assert run("eurosat", mirror="").status == 0
    assert run("--check", "eurosat").status == 0


def test_the_table_agrees_with_torchvision():
    known = {
        "oxford_pets": torchvision.datasets.OxfordIIITPet._RESOURCES[0],
        "food101": (torchvision.datasets.Food101._URL, torchvision.datasets.Food101._MD5),
        "fgvc_aircraft": (torchvision.datasets.FGVCAircraft._URL, ""),
        "sun397": (torchvision.datasets.SUN397._DATASET_URL, torchvision.datasets.SUN397._DATASET_MD5),
        "dtd": (torchvision.datasets.DTD._URL, torchvision.datasets.DTD._MD5),
    }
    for name, pair in known.items():
        assert (table()[name].files[-1].url, table()[name].files[-1].md5) == pair
    imagenet = {file.name: file.md5 for file in table()["imagenet"].files}
    assert imagenet.items() >= dict(torchvision.datasets.imagenet.ARCHIVE_META.values()).items()
    assert set(table()) == set(NAMES)
    assert all(file.size > 0 and file.link or source.by_hand or "cars" in file.name
               for source in table().values() for file in source.files)  # fmt: skip


def test_images_that_are_missing_are_added_and_nothing_else_is_touched(run, publish, tmp_path):
    made = publish("dtd")
    folder = tmp_path / "data/dtd"
    shutil.copytree(made, folder)
    images = sorted((folder / "images").rglob("*.jpg"))
    images[0].unlink()
    images[5].write_bytes(b"changed by its owner")
    (folder / "images/mine.jpg").write_bytes(b"extra")
    split = (folder / "split_zhou_DescribableTextures.json").stat().st_mtime_ns
    status, printed, errors = run("--check", "dtd", "--quick")
    assert status == 2 and "1 of 1 datasets not as they should be" in errors[0]
    assert f"1 images are missing, the first {images[0]}" in printed and "mine.jpg (harmless)" in printed
    assert printed.rstrip().endswith(f"-> python tools/prepare.py dtd --root {tmp_path}/data")

    assert run("dtd").status == 0
    assert images[0].read_bytes() == (made / images[0].relative_to(folder)).read_bytes()
    assert images[5].read_bytes() == b"changed by its owner" and (folder / "images/mine.jpg").exists()
    assert (folder / "split_zhou_DescribableTextures.json").stat().st_mtime_ns == split


def test_unreadable_images_are_named_and_replaced_by_repair(run, publish, tmp_path):
    made = publish("eurosat")
    shutil.copytree(made, tmp_path / "data/eurosat")
    image = tmp_path / "data/eurosat/2750/Forest/Forest_2.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    status, printed, _ = run("--check", "eurosat")
    assert status == 2 and f"1 images are unreadable, the first {image}" in printed
    command = f"python tools/prepare.py eurosat --root {tmp_path}/data --repair"
    assert printed.rstrip().endswith(f"-> {command}")
    assert run("eurosat", "--repair").status == 0
    assert image.read_bytes() == whole and run("--check", "eurosat").status == 0


def test_check_says_when_counts_are_not_the_published_ones(run, publish, tmp_path):
    shutil.copytree(publish("imagenet_a"), tmp_path / "data/imagenet-adversarial")
    next((tmp_path / "data").rglob("*.jpg")).unlink()
    status, printed, _ = run("--check", "imagenet_a")
    assert status == 2 and "7 images for test instead of 8" in printed and "imagenet_a --root" in printed
    assert printed.rstrip().endswith("--repair")
    assert run("imagenet_a", "--repair").status == 0 and run("--check", "imagenet_a").status == 0


def test_the_list_says_what_there_is(run, publish, tmp_path):
    shutil.copytree(publish("ucf101"), tmp_path / "data/ucf101")
    (tmp_path / "data/dtd").mkdir()
    status, printed, _ = run("--list")
    lines = {line.split()[0]: line for line in printed.splitlines()}
    assert status == 0 and set(NAMES) <= set(lines)
    assert " ready " in lines["ucf101"] and " incomplete " in lines["dtd"] and " not there " in lines["sun397"]
    assert "39.1 GB, downloaded; none stated" in lines["sun397"] and "154.6 GB, by hand" in lines["imagenet"]


def test_what_needs_no_files_is_passed_over(run):
    assert run("image_folder", "small_shapes").printed.splitlines() == [
        "image_folder: nothing to prepare",
        "small_shapes: nothing to prepare",
    ]


# Few-shot choices


def test_the_few_shot_choice_needs_only_the_split(run, publish, capsys, tmp_path):
    (tmp_path / "data/caltech-101").mkdir(parents=True)
    shutil.copy(publish("caltech101") / "split_zhou_Caltech101.json", tmp_path / "data/caltech-101")
    status, printed, _ = run("fewshot", "caltech101", "--seed", 2, "--shots", 2)
    lines = printed.splitlines()
    assert status == 0 and len(lines) == 4 * 2 + 4 * 1
    data = table()["caltech101"].read(tmp_path / "data", "DATASET.NUM_SHOTS", "2", seed=2)
    capsys.readouterr()
    assert lines == [
        *(f"train {item.impath.split('101_ObjectCategories/')[1]}" for item in data.train_x),
        *(f"val {item.impath.split('101_ObjectCategories/')[1]}" for item in data.val),
    ]
    base = run("fewshot", "caltech101", "--seed", 2, "--shots", 2, "--classes", "base").printed.splitlines()
    assert base == lines[:4] + lines[8:10]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs EuroSAT's real split beside the checkout")
def test_the_few_shot_choice_is_the_published_one(run):
    golden = json.loads((ROOT.parent / "shared/golden/fewshot_eurosat.json").read_text())
    for key, expected in list(golden.items())[:4]:
        seed, shots = (int(part) for part in re.findall(r"\d+", key))
        printed = run("fewshot", "eurosat", "--seed", seed, "--shots", shots, root=SHARED).printed.splitlines()
        chosen = {
            part: [line.split(" ", 1)[1] for line in printed if line.startswith(part)] for part in ("train", "val")
        }
        assert (len(chosen["train"]), len(chosen["val"])) == (expected["n_train"], expected["n_val"])
        for part, images in chosen.items():
            assert images == expected.get(part, images)
            assert hashlib.sha256("\n".join(images).encode()).hexdigest() == expected[f"{part}_sha256"]


# What goes wrong


def test_what_was_asked_for_is_not_there(fails, tmp_path):
    fails([], "say which dataset")
    fails(["eurosatt"], "no dataset 'eurosatt': did you mean eurosat?")
    fails(["fewshot"], "fewshot DATASET")
    fails(["dtd", "--from", tmp_path / "none"], "no folder")
    fails(["fewshot", "dtd"], f"python tools/prepare.py dtd --root {tmp_path}/data")
    assert not (tmp_path / "data").exists()


def test_a_failed_download_leaves_no_folders(fails, publish, tmp_path):
    publish("eurosat")
    publish.server.faults = ["not found"]
    fails(["eurosat"], "404", f"put split_zhou_EuroSAT.json into {tmp_path}/data/eurosat by hand, then: python tools")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "fault", ["wrong checksum", "truncated", "hostile", "quota page", "images missing", "no folder"]
)
def test_an_archive_that_cannot_be_used_is_one_line_and_nothing_of_it_stays(
    fault, fails, run, publish, monkeypatch, tmp_path
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
    fails(["eurosat"], words[fault])
    assert all_below(tmp_path / "data") == {"eurosat", "eurosat/split_zhou_EuroSAT.json"}
    assert not (tmp_path / "outside.jpg").exists()

    publish.server.files["/eurosat/EuroSAT.zip"] = good
    assert run("eurosat").status == 0 and run("--check", "eurosat").status == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"<!DOCTYPE html><html>quota</html>"])
def test_a_split_that_is_none_is_refused(content, fails, publish, monkeypatch, tmp_path):
    publish("eurosat")
    for key in ("md5", "bytes"):
        monkeypatch.setattr(table()["eurosat"].files[0], key, type(getattr(table()["eurosat"].files[0], key))())
    publish.server.files["/eurosat/split_zhou_EuroSAT.json"] = content
    fails(["eurosat"], "split_zhou_EuroSAT.json")
    assert not (tmp_path / "data").exists()


def test_a_damaged_split_of_ones_own_is_not_overwritten(fails, publish, tmp_path):
    shutil.copytree(publish("eurosat"), tmp_path / "data/eurosat")
    split = tmp_path / "data/eurosat/split_zhou_EuroSAT.json"
    split.write_text("{")
    fails(["eurosat"], f"move {split} elsewhere, then: python tools/prepare.py eurosat")
    assert split.read_text() == "{"


def test_too_little_room_is_said_before_anything_is_downloaded(fails, publish, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    fails(["eurosat", "sun397"], "78.2 GB are needed", "0.0 GB are free", "choose another --root")
    assert publish.server.requests == [] and not (tmp_path / "data").exists()


def test_an_interruption_and_the_same_command_again(run, publish, monkeypatch, tmp_path):
    made = publish("eurosat")
    write, written = unpack.write, []

    def interrupted(member, path):
        written.append(path)
        if len(written) == 5:
            os.kill(os.getpid(), signal.SIGTERM)  # as Ctrl-C, and heeded in the background too
        write(member, path)

    monkeypatch.setattr(unpack, "write", interrupted)
    status, _, errors = run("eurosat")
    assert (status, errors) == (130, ["Interrupted: the same command goes on where it was"])
    assert not (tmp_path / "data/eurosat/2750").exists()
    assert run("eurosat").status == 0
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


def test_one_that_fails_does_not_stop_the_others(fails, publish, tmp_path):
    publish("eurosat")
    printed = fails(
        ["imagenet", "dtd", "eurosat"], "2 of 3 datasets could not be prepared", mirror=publish.server.address
    )
    assert "dtd: cannot get split_zhou_DescribableTextures.json" in printed and "eurosat: ready: " in printed
    assert "imagenet: cannot get classnames.txt" in printed


# By hand


def test_imagenet_says_what_to_get_and_arranges_it(fails, run, publish, monkeypatch, tmp_path):
    publish("imagenet")
    said = fails(
        ["imagenet"],
        "ILSVRC2012_img_val.tar, ILSVRC2012_img_train.tar, ILSVRC2012_devkit_t12.tar.gz",
        "https://image-net.org/download-images.php",
        f"into {tmp_path}/data/imagenet, then: python tools/prepare.py imagenet",
        mirror="",
    )
    assert said == "" and not (tmp_path / "data").exists()
    given = tmp_path / "given"
    given.mkdir()
    for path, content in publish.server.files.items():
        (given / Path(path).name).write_bytes(content)
    (given / "ILSVRC2012_devkit_t12.tar.gz").rename(tmp_path / "kit")
    fails(["imagenet", "--from", given], "put ILSVRC2012_devkit_t12.tar.gz (", mirror="")
    (tmp_path / "kit").rename(given / "ILSVRC2012_devkit_t12.tar.gz")
    before = all_below(given)
    assert run("imagenet", "--from", given, mirror="").status == 0
    assert run("--check", "imagenet").status == 0 and all_below(given) == before


def test_a_file_got_by_hand_is_verified(fails, publish, tmp_path):
    made = publish("eurosat")
    folder = tmp_path / "data/eurosat"
    folder.mkdir(parents=True)
    shutil.copy(made / "split_zhou_EuroSAT.json", folder)
    (folder / "EuroSAT.zip").write_bytes(b"half of it")
    fails(["eurosat"], f"{folder}/EuroSAT.zip is not the published file (it has 10 bytes", "get it again, or delete it")
    assert all_below(folder) == {"split_zhou_EuroSAT.json", "EuroSAT.zip"}


def test_the_original_archives_of_the_cars_do_as_well(run, publish, monkeypatch, tmp_path):
    made, folder = publish("stanford_cars"), tmp_path / "data/stanford_cars"
    folder.mkdir(parents=True)
    for file in table()["stanford_cars"].files[1:3]:
        place = file.name.removesuffix(".tgz")
        path = tar(folder / file.name, {f"{place}/{name}": data for name, data in files_below(made / place).items()})
        monkeypatch.setattr(file, "bytes", path.stat().st_size)
        monkeypatch.setattr(file, "md5", "")
    assert run("stanford_cars").status == 0 and run("--check", "stanford_cars").status == 0
    assert [path for path, _ in publish.server.requests] == ["/stanford_cars/split_zhou_StanfordCars.json"]


# From the scripts


@pytest.mark.parametrize("wanted", ["1", ""])
def test_scripts_prepare_their_dataset_when_asked_to(wanted, tmp_path):
    stub = tmp_path / "python"
    stub.write_text('#!/usr/bin/env bash\necho "$@" >> "$NOTES"\n')
    stub.chmod(0o755)
    given = {"PYTHON": stub, "NOTES": tmp_path / "notes", "DATA": tmp_path, "OUT": tmp_path / "out", "PREPARE": wanted}
    env = {key: value for key, value in os.environ.items() if key not in ("CFG", "BACKBONE")}
    env |= {key: str(value) for key, value in given.items()}
    for script, arguments in (("mpl/base2new_train.sh", ["eurosat", "1"]), ("zsclip/zeroshot.sh", ["eurosat"])):
        (tmp_path / "notes").write_text("")
        subprocess.run(["bash", str(ROOT / "scripts" / script), *arguments], env=env, cwd=ROOT, check=True)
        calls = (tmp_path / "notes").read_text().splitlines()
        assert (calls[0] == f"tools/prepare.py eurosat --root {tmp_path}") == bool(wanted)
        assert sum(call.startswith("train.py") for call in calls) == 1


def test_a_readable_image_is_read(tmp_path):
    from tools.preparing.check import unreadable

    Image.new("P", (5, 5)).save(tmp_path / "palette.png")
    Image.new("CMYK", (5, 5)).save(tmp_path / "cmyk.jpg")
    (tmp_path / "none.jpg").write_bytes(b"")
    assert unreadable(tmp_path, ["palette.png", "cmyk.jpg", "none.jpg"]) == ["none.jpg"]
