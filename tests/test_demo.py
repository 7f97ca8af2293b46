"""make demo."""

import json
import shutil
from functools import partial

import pytest
from drawn import card
from finished import InThisProcess
from matplotlib.axes import Axes
from PIL import Image

from experiments import demo
from experiments.predictions import read
from experiments.studies import executor
from experiments.studies.spec import Study


@pytest.mark.slow
def test_demo_writes_a_table_a_file_and_a_picture(drawn, tmp_path, monkeypatch, capsys):
    output = tmp_path / "demo"
    root = tmp_path / "data"
    shutil.copytree(drawn / "small_objects", root / "small_objects")
    monkeypatch.setattr(demo, "Study", partial(Study, shots=(4,)))  # to save time
    monkeypatch.setattr(executor, "LocalExecutor", InThisProcess)
    argv = ["--output", str(output), "--root", str(root), "--methods", "CoOp", "--seeds", "1", "--workers", "1"]
    words = []
    monkeypatch.setattr(Axes, "text", lambda axes, x, y, word, **how: words.append(word))
    demo.main(argv)
    summary = json.loads((output / "summary.json").read_text())
    cells = [cell for cell in summary["cells"] if (cell["part"], cell["dataset"]) == ("base", "small_objects")]
    base = {cell["method"]: cell["mean"] for cell in cells}
    assert base["ZeroshotCLIP"] == pytest.approx(card("SmallObjects")[1], abs=0.7)
    assert base["CoOp"] > base["ZeroshotCLIP"] + 5
    with Image.open(output / "images.png") as picture:
        assert min(picture.size) > 300
    # The words of the picture: three classes of six images by zero-shot CLIP, then by CoOp, which sorts the images.
    runs = [next((output / "base2new/train_base").glob(f"*/*/{name}/*/seed1")) for name in base]
    before, after = map(read, runs)
    rows = [before["label"].tolist().index(label) for label in range(6)]
    right = [dict(zip(after["classes"][row], after["probabilities"][row], strict=True)) for row in rows]
    order = sorted(range(6), key=lambda label: -right[label].get(label, 0))
    assert words == [
        f"{found['class_names'][index]} {value:.0%}"
        for row in (rows[label] for label in order)
        for found in (before, after)
        for index, value in zip(found["classes"][row][:3], found["probabilities"][row][:3], strict=True)
    ]
    printed = capsys.readouterr().out
    assert "| CoOp |" in printed and "summary.json" in printed and "cannot rank methods" in printed
    monkeypatch.setattr(InThisProcess, "submit", lambda *run: pytest.fail("a run was started again"))
    demo.main(argv)
    assert capsys.readouterr().out.endswith(printed[-200:])
