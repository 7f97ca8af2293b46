"""`python -m benchmarks.real`: its data sets, its fits and the table."""

import gzip
import json
import sys

import numpy as np
import pytest
from marks import one_line, times
from PIL import Image

from benchmarks.real import __main__ as real
from benchmarks.real import images


def test_halves_keep_near_names_together_and_images_are_on_white(tmp_path):
    folder = tmp_path / "deb/tuxpaint/stamps"
    for directory in images.STAMPS:
        (folder / directory).mkdir(parents=True, exist_ok=True)
        for name in ("lion", "lion-2", "lion_3", "owl", "yak", "emu"):
            clear = Image.new("RGBA", (300, 20), (255, 0, 0, 0))
            clear.save(folder / directory / f"{name}.png")
    target = images.build("stamps", [tmp_path / "npm", tmp_path / "deb"], tmp_path / "sets")
    parts = {path.parent.parent.name for path in target.rglob("*.png") if path.stem.count("lion")}
    assert len(parts) == 1 and {path.name for path in (target / "train").iterdir()} == {
        path.name for path in (target / "test").iterdir()
    }
    image = Image.open(next(target.rglob("*.png")))
    assert image.size == (256, 17) and image.getpixel((0, 0)) == (255, 255, 255)
    before = times(target)
    assert images.build("stamps", [], tmp_path / "sets") == target
    assert before == times(target)


def test_a_misspelt_set_is_one_line(tmp_path):
    with one_line("there is no data set 'stamp': did you mean stamps?"):
        images.build("stamp", [], tmp_path)


def test_files_of_mnists_form(tmp_path):
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    head = bytes([0, 0, 8, 3]) + np.array(pixels.shape, ">u4").tobytes()
    (tmp_path / "x.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
    assert np.array_equal(images.read_idx(tmp_path / "x.gz"), pixels)


@pytest.mark.parametrize("name", ["fashion_mnist", "stamps", "eurosat"])
def test_a_missing_package_is_one_line(name, tmp_path):
    with one_line("no folder of --sources has"):
        images.build(name, [tmp_path], tmp_path / "sets")


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


def test_fits_resume_and_a_table_needs_one(tones, monkeypatch, capsys):
    def run(*options):
        argv = ["real", "--output", tones, "--sets", "tones", "--shots", "1", "3", *options]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        real.main()
        return [json.loads(line) for line in (tones / "fits.jsonl").open()]

    with one_line("fits.jsonl has no records: run the same command without --table"):
        run("--table")
    first = run("--seeds", 1)
    both = run("--seeds", 1, 2)
    assert len(first) == 2 and len(both) == 4 and both[:2] == first
    assert all(one["fit"] > 60 and one["recipes"].keys() == real.RECIPES.keys() for one in both)
    assert "estimate" not in both[0] and both[1]["low"] < both[1]["high"]
    capsys.readouterr()
    run("--table")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:2] == ["tones", "1"] and "of 2 intervals" in lines[-1]
