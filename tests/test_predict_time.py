"""benchmarks/predict_time.py measures predict and open_clip's bare pass in turn, on the same weights."""

import json

import pytest

from benchmarks import measuring, predict_time

SMALL = {"vision_cfg": {"width": 64, "patch_size": 112}, "text_cfg": {"width": 64, "heads": 1}, "embed_dim": 64}


@pytest.fixture
def arch(monkeypatch):
    """An architecture as deep as ViT-B/16, so that the settings of the methods fit, and narrow."""
    from open_clip import factory

    config = factory.get_model_config("ViT-B-16")
    narrow = config | {key: config[key] | value if isinstance(value, dict) else value for key, value in SMALL.items()}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "narrow", narrow)
    return "narrow"


def test_predict_and_open_clip_take_turns(arch, tmp_path, monkeypatch, capsys):
    order, seconds = [], {"open_clip": 1.0, "ZeroshotCLIP": 0.5, "MPL": 2.0}

    def timed(function, device):
        function()
        order.append(list(seconds)[len(order) % 3])
        return seconds[order[-1]] * (1 + len(order) // 3)  # a machine that gets slower

    monkeypatch.setattr(measuring, "timed", timed)
    options = ["--arch", arch, "--images", "3", "--rounds", "2", "--threads", "1", "--classes", "2", "--batch", "2"]
    predict_time.main([*options, "--json", str(tmp_path / "times.json")])
    assert order == list(seconds) * 3
    first, zero_shot, mpl = json.loads((tmp_path / "times.json").read_text())
    assert (first["pass"], first["ratio"], first["images_per_s"]) == ("open_clip", 1, pytest.approx(3 / 2.5))
    assert zero_shot["ratio"] > 1 > mpl["ratio"]
    assert capsys.readouterr().out.splitlines()[4].startswith("| open_clip | 1.2 | 1 |")
