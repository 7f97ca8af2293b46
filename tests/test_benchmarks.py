"""benchmarks/: what the programs write, that ways take turns, and gpu_check in its reduced form."""

import json
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks import dashboard, gpu_check, measuring, predict_time, predictions_time, step_time, views_time

ROOT = Path(__file__).parent.parent


@pytest.mark.thorough
def test_step_time_writes_a_record_for_each_way(python, backbones, tmp_path):
    options = ["--trainer", "MPL", "--classes", 3, "--batch", 1, "--test-batch", 2, "--what", *step_time.WHAT]
    options += ["--ranks", 1, 2, "--rounds", 1, "--seconds", 0, "--threads", 2]
    options += ["--backbone", backbones(224, 16, 12, 12, 64, 64, 256), "--json", tmp_path / "times.json"]
    command = [python, ROOT / "benchmarks/step_time.py", *map(str, options)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    records = json.loads((tmp_path / "times.json").read_text())
    ways = [(form, ranks) for form in ("fast", "plain") for ranks in (1, 2)]
    found = [(each["what"], (each["form"], each["ranks"])) for each in records]
    assert found == [(what, way) for what in step_time.WHAT for way in ways]
    for each in records:
        assert (
            each["seconds"] > 0
            and each["mb"] > 0
            and (each["ratio"] == 1) == (each["form"] == "fast" and each["ranks"] == 1)
        )


@pytest.mark.thorough
def test_predictions_time_writes_a_record(drawn, tmp_path):
    options = ["--root", str(drawn), "--dataset", "small_objects", "--rounds", "1", "--threads", "1"]
    predictions_time.main([*options, "--json", str(tmp_path / "times.json")])
    (record,) = json.loads((tmp_path / "times.json").read_text())
    assert record["images"] > 100 and 0.5 < record["ratio"] < 2 and 1000 < record["bytes"] < 200 * record["images"]


def test_ways_take_turns_and_are_compared_with_the_first(monkeypatch, tmp_path, capsys):
    order, seconds = [], {"fp32": 1.2, "bf16": 0.6}

    def in_processes(way):
        order.append(way["prec"])
        slower = 1 + (len(order) - 1) // 2  # a machine that gets slower
        return {"seconds": seconds[way["prec"]] * slower, "mb": 100 * len(order)}

    monkeypatch.setattr(step_time, "in_processes", in_processes)
    options = ["--classes", "3", "--form", "fast", "--prec", "fp32", "bf16", "--rounds", "3", "--backbone", "none.pt"]
    step_time.main([*options, "--json", str(tmp_path / "times.json")])
    first, second = json.loads((tmp_path / "times.json").read_text())
    assert order == ["fp32", "bf16"] * 3
    assert (first["prec"], first["seconds"], first["ratio"], first["mb"]) == ("fp32", 2.4, 1, 500)
    assert (second["prec"], second["seconds"], second["ratio"], second["mb"]) == ("bf16", 1.2, 2, 600)
    assert capsys.readouterr().out.splitlines()[-1].startswith("| MPL | 3 | train_step | fast | bf16 | 1 | 1.2 | 2 |")


SMALL = {"vision_cfg": {"width": 64, "patch_size": 112}, "text_cfg": {"width": 64, "heads": 1}, "embed_dim": 64}


@pytest.fixture
def arch(monkeypatch):
    """An architecture as deep as ViT-B/16, so that the settings of the methods fit, and narrow."""
    from open_clip import factory

    config = factory.get_model_config("ViT-B-16")
    narrow = config | {key: config[key] | value if isinstance(value, dict) else value for key, value in SMALL.items()}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "narrow", narrow)
    return "narrow"


def test_predict_is_compared_with_open_clip(arch, tmp_path, monkeypatch):
    order, seconds = [], {"open_clip": 1.0, "ZeroshotCLIP": 0.5, "MPL": 2.0}

    def timed(function, device):
        function()
        order.append(list(seconds)[len(order) % 3])
        return seconds[order[-1]]

    monkeypatch.setattr(measuring, "timed", timed)
    options = ["--arch", arch, "--images", "3", "--rounds", "2", "--threads", "1", "--classes", "2", "--batch", "2"]
    predict_time.main([*options, "--json", str(tmp_path / "times.json")])
    assert order == list(seconds) * 2
    found = [
        (each["pass"], each["images_per_s"], each["ratio"])
        for each in json.loads((tmp_path / "times.json").read_text())
    ]
    assert found == [("open_clip", 3, 1), ("ZeroshotCLIP", 6, 2), ("MPL", 1.5, 0.5)]


def test_published_loops_of_views_give_the_same_answers(arch, tmp_path, monkeypatch):
    seconds = iter([4.0, 2.0, 1.0, 1.0])
    monkeypatch.setattr(measuring, "timed", lambda function, device: next(seconds))
    options = ["--arch", arch, "--rounds", "1", "--threads", "1", "--classes", "3", "--views", "20"]
    views_time.main([*options, "--json", str(tmp_path / "times.json")])
    found = json.loads((tmp_path / "times.json").read_text())
    assert [(each["method"], each["ours, images/s"], each["ratio"]) for each in found] == [
        ("TPT", 0.5, 2),
        ("ZERO", 1, 1),
    ]
    assert max(each["difference"] for each in found) < 1e-3


# gpu_check, every line but CUDA's own


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
    rows = {part: [each for each in found["records"] if each["part"] == part] for part in gpu_check.PARTS}
    assert [part for part in rows if not rows[part]] == ["peak memory"]
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(tmp_path):
    with pytest.raises(SystemExit) as end:
        gpu_check.main(["--minutes", "3", "--json", str(tmp_path / "check.json")])
    found = json.loads((tmp_path / "check.json").read_text())
    assert end.value.code == 0, found["left_out"]


def test_published_steps_compute_the_same_without_dropout(backbones):
    found, backbone = [], str(backbones(224, 112, 12, 12, 64, 64, 64))
    for form in ("fast", "plain", "published"):
        torch.manual_seed(0)
        trainer = measuring.build("CLIPLoRA", 3, backbone, form)
        for adapter in trainer.model.prompt_learner.extra_modules.values():
            adapter.p = 0
        for name, parameter in trainer.model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        images = torch.randn(2, 3, *trainer.cfg.INPUT.SIZE, generator=torch.Generator().manual_seed(1))
        loss, _ = trainer.loss(trainer.model.output(images), torch.tensor([0, 2]))
        found.append([loss, *torch.autograd.grad(loss, trainer.model.parameters())])
    for other in found[1:]:
        for got, expected in zip(other, found[0], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_the_dashboard_keeps_a_section_for_each_program_that_ended(monkeypatch, tmp_path):
    (tmp_path / "good.py").write_text("import sys\nopen(sys.argv[-1], 'w').write('[{\"ratio\": 2.0}]')\n")
    (tmp_path / "bad.py").write_text("raise SystemExit('error: no memory')\n")
    commands = {"good": f"{tmp_path}/good.py --classes 5", "bad": f"{tmp_path}/bad.py"}
    found = {name: dashboard.Benchmark(name, command, "") for name, command in commands.items()}
    monkeypatch.setattr(dashboard, "BENCHMARKS", found)
    dashboard.main(["--only", "good", "bad", "--rounds", "1", "--page", str(tmp_path / "page.md")])
    page = (tmp_path / "page.md").read_text()
    assert "| ratio |\n| --- |\n| 2 |" in page and "Not measured: error: no memory" in page
    assert "--classes 5 --rounds 1" in page and "commit" in page


def test_the_dashboard_has_every_option_of_its_programs(monkeypatch):
    """A program's options are checked before it measures."""
    programs = {"step_time.py": step_time, "predict_time.py": predict_time, "views_time.py": views_time}
    monkeypatch.setattr(measuring, "show", lambda *_: None)
    monkeypatch.setattr(measuring, "backbone_file", lambda *_: nullcontext("none.pt"))
    for each in dashboard.BENCHMARKS.values():
        program, *options = each.command.split()
        programs[program].main([*options, "--rounds", "1"])
