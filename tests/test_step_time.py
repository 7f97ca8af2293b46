"""The benchmark: what it writes, and that it counts what a step takes."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from benchmarks import measuring, precision_time, step_time
from clip.random_weights import random_clip
from trainers.base import precision

ROOT = Path(__file__).parent.parent
KEYS = {"trainer", "classes", "batch", "prec", "what", "plain_s", "fast_s", "ratio"}
KEYS |= {"plain_peak_mb", "fast_peak_mb", "matmul_share"}


@pytest.mark.thorough
def test_one_record_for_each_measurement(python, backbones, tmp_path):
    options = ["--trainer", "MPL", "--classes", 2, "--batch", 1, "--test-batch", 2, "--seconds", 0, "--threads", 1]
    options += ["--backbone", backbones(224, 16, 12, 12, 64, 64, 256), "--json", tmp_path / "times.json"]
    command = [python, ROOT / "benchmarks/step_time.py", *map(str, options)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    step, test = json.loads((tmp_path / "times.json").read_text())
    assert step.keys() == test.keys() == KEYS
    assert [step[key] for key in ("trainer", "classes", "batch", "prec", "what")] == ["MPL", 2, 1, "fp32", "train_step"]
    assert (test["batch"], test["what"]) == (2, "test_batch")
    for record in (step, test):
        assert record["ratio"] == pytest.approx(record["plain_s"] / record["fast_s"])
        assert record["plain_s"] > 0 and record["fast_s"] > 0
        assert 0 < record["matmul_share"] < 2
        assert min(record["plain_peak_mb"], record["fast_peak_mb"]) > 100


def test_a_slower_form_has_a_lower_ratio_and_share(monkeypatch):
    """`measure` divides what the two forms report: the figures are those of the forms, not of the machine."""
    reports = {
        "plain": {"seconds": 3.0, "peak_mb": 700, "flop": 9e9, "flop_per_second": 1e10},
        "fast": {"seconds": 1.5, "peak_mb": 300, "flop": 6e9, "flop_per_second": 1e10},
    }
    monkeypatch.setattr(measuring, "in_processes", lambda file, settings: reports[settings["form"]])
    args = SimpleNamespace(**dict.fromkeys(step_time.PASSED_ON), rounds=1)
    record = step_time.measure(args, "MPL", 5, "train_step")
    assert (record["ratio"], record["matmul_share"]) == (2.0, pytest.approx(0.4))
    assert (record["plain_peak_mb"], record["fast_peak_mb"]) == (700, 300)


def test_attention_counts_on_a_cpu_too():
    """Two products of forward, five of backward, which computes the first one again."""

    def step(images: int, batches: int) -> None:
        q, k, v = (torch.randn(images, 2, 7, 4, requires_grad=True) for _ in range(3))
        F.scaled_dot_product_attention(q, k, v).sum().backward()

    assert step_time.operations(step, 3) == 3 * 2 * (7 * 7 * 4 * 2) * (2 + 5)


def test_precisions_take_turns_and_are_compared_with_the_first(monkeypatch, tmp_path, capsys):
    order, seconds = [], {"fp32": 1.2, "bf16": 0.6}

    def timed(function, device):
        function()
        order.append(("fp32", "bf16")[len(order) % 2])
        return seconds[order[-1]] * (1 + len(order) // 2)  # a machine that gets slower

    monkeypatch.setattr(measuring, "timed", timed)
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    build, built = measuring.build, {}
    monkeypatch.setattr(
        measuring, "build", lambda *args, prec, **how: built.setdefault(prec, build(*args, prec=prec, **how))
    )
    options = ["--rounds", "2", "--classes", "3", "--backbone", str(tmp_path / "clip.pt")]
    torch.save(random_clip("ViT-B-16", {"patch_size": 32, "width": 64}, {"width": 64}, 64).state_dict(), options[-1])
    precision_time.main([*options, "--trainer", "CoOp", "--threads", "1", "--json", str(tmp_path / "times.json")])
    records = json.loads((tmp_path / "times.json").read_text())
    assert order == ["fp32", "bf16"] * 3 and [each["prec"] for each in records] == ["fp32", "bf16"]
    assert records[0]["ratio"] == 1 and 1 < records[1]["ratio"] < 2
    assert built["bf16"].model.clip.visual.conv1.weight.dtype == torch.bfloat16
    assert capsys.readouterr().out.splitlines()[4].startswith("| CoOp | 3 | fp32 |")
