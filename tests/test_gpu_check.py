"""benchmarks/gpu_check.py in its reduced form: every line but CUDA's own."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check


@pytest.fixture
def check(monkeypatch, tmp_path, capsys):
    """`check(*options)` -> (exit status, what it printed, its JSON), without a GPU; the golden case is not started."""
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    done = gpu_check.subprocess.CompletedProcess([], 0, "1 passed in 1 s\n", "")
    monkeypatch.setattr(gpu_check.subprocess, "run", lambda *arguments, **options: done)

    def check(*options):
        with pytest.raises(SystemExit) as end:
            gpu_check.main(["--json", str(tmp_path / "check.json"), *options])
        return end.value.code, capsys.readouterr().out, json.loads((tmp_path / "check.json").read_text())

    return check


@pytest.mark.slow
def test_reduced_form_measures_each_part(check):
    status, printed, found = check()
    assert status == 0, found["left_out"]
    rows = {part: [each for each in found["records"] if each["part"] == part] for part in titles(found)}
    assert list(rows) == ["golden cases", "against fp32", "test pass", "training step"]
    assert rows["golden cases"][0]["result"] == "1 passed in 1 s"
    assert {each["prec"] for each in rows["against fp32"]} == {"bf16", "amp"}
    for each in rows["against fp32"]:
        assert 0 < each["logits"] < 2 and 0 < each["gradient"] < 0.2 and abs(each["loss after 2 steps"]) < 0.5
    assert {(each["form"], each["prec"]) for each in rows["training step"]} == {
        (form, prec) for form in ("fast", "plain") for prec in ("fp32", "bf16")
    }
    assert [each["decoded"] for each in rows["test pass"]] == ["each time", "kept"]
    assert all(each["images a second"] > 0 for each in rows["test pass"])
    reasons = {each["why"] for each in found["left_out"]}
    needs = ("fp16 needs", "MODEL.COMPILE needs", "CUDA graphs need", "it is measured on")
    assert reasons == {f"{need} a GPU{' only' * need.startswith('it')}" for need in needs}
    assert "Reduced form" in printed and printed.count("\n| --- |") == 4 and "- peak memory: MPL, 5" in printed


def titles(found) -> list[str]:
    return list(dict.fromkeys(each["part"] for each in found["records"]))


def test_without_time_all_is_left_out_and_named(check):
    status, printed, found = check("--minutes", "0")
    assert status == 0 and found["records"] == []
    assert {each["why"] for each in found["left_out"]} == {"no time left"}
    assert "- training step: CoOp, 5, fp32, fast: no time left" in printed


def test_failure_is_named_and_the_rest_is_measured(check, monkeypatch):
    def broken(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 1 GiB")

    failed = gpu_check.subprocess.CompletedProcess([], 1, "1 failed in 1 s\n", "")
    monkeypatch.setattr(gpu_check.subprocess, "run", lambda *arguments, **options: failed)
    chosen = {part: gpu_check.PARTS[part] for part in ("golden cases", "peak memory")}
    monkeypatch.setattr(gpu_check, "PARTS", chosen)
    monkeypatch.setattr(gpu_check.measuring, "build", broken)
    status, printed, found = check()
    assert status == 1
    assert "- golden cases: fp32: failed: RuntimeError: 1 failed in 1 s" in printed
    assert "- peak memory: MPL, 5, fp32, fast: failed: OutOfMemoryError: CUDA out of memory. Tried to" in printed


def test_golden_case_of_the_reduced_form_exists():
    assert (Path(__file__).parent / "golden/vpt_shallow.json").is_file()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(tmp_path):
    with pytest.raises(SystemExit) as end:
        gpu_check.main(["--minutes", "3", "--json", str(tmp_path / "check.json")])
    found = json.loads((tmp_path / "check.json").read_text())
    assert end.value.code == 0, found["left_out"]
