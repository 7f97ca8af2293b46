"""benchmarks/: what the programs write, that ways take turns, and gpu_check in its reduced form."""

import json
import subprocess
import time

import pytest
import torch

from benchmarks import dashboard, gpu_check, measuring, official, predict_time, predictions_time, step_time, views_time
from clip import TOWERS
from experiments.session import cli_main

pytestmark = pytest.mark.slow


@pytest.fixture
def times(tmp_path):
    """`times(program, *options)` -> the records that a program writes."""

    def times(program, *options):
        program.main([*map(str, options), "--threads", "1", "--json", str(tmp_path / "times.json")])
        return json.loads((tmp_path / "times.json").read_text())

    return times


@pytest.mark.thorough
def test_step_time_writes_a_record_for_each_way(python, backbones, times, monkeypatch):
    monkeypatch.setattr(step_time.sys, "executable", str(python))
    options = ["--trainer", "MPL", "--classes", 3, "--batch", 1, "--test-batch", 2, "--what", *step_time.WHAT]
    options += ["--rounds", 1, "--seconds", 0]
    records = times(step_time, *options, "--backbone", backbones(224, 16, 12, 12, 64, 64, 256))
    found = [(each["what"], each["form"]) for each in records]
    assert found == [(what, form) for what in step_time.WHAT for form in step_time.FORMS]
    for each, (_, form) in zip(records, found, strict=True):
        assert each["seconds"] > 0 and each["mb"] > 0 and (each["ratio"] == 1) == (form == "fast")


@pytest.mark.thorough
def test_predictions_time_writes_a_record(drawn, times):
    (record,) = times(predictions_time, "--root", drawn, "--dataset", "small_objects", "--rounds", 1)
    assert record["images"] > 100 and 0.5 < record["ratio"] < 2 and 1000 < record["bytes"] < 200 * record["images"]


def test_ways_take_turns_and_are_compared_with_the_first(monkeypatch, times, capsys):
    order, seconds = [], {"fp32": 1.2, "bf16": 0.6}

    def in_process(way):
        order.append(way["prec"])
        slower = 1 + (len(order) - 1) // 2  # a machine that gets slower
        return {"seconds": seconds[way["prec"]] * slower, "mb": 100 * len(order)}

    monkeypatch.setattr(step_time, "in_process", in_process)
    options = ["--classes", 3, "--form", "fast", "--prec", "fp32", "bf16", "--rounds", 3, "--backbone", "none.pt"]
    first, second = times(step_time, *options)
    assert order == ["fp32", "bf16"] * 3
    assert (first["prec"], first["seconds"], first["ratio"], first["mb"]) == ("fp32", 2.4, 1, 500)
    assert (second["prec"], second["seconds"], second["ratio"], second["mb"]) == ("bf16", 1.2, 2, 600)
    assert capsys.readouterr().out.splitlines()[-1].startswith("| MPL | 3 | train_step | fast | bf16 | 1.2 | 2 |")


@pytest.fixture
def arch(monkeypatch):
    """An architecture as deep as ViT-B/16, so that the settings of the methods fit, and narrow."""
    from open_clip import factory

    config = factory.get_model_config("ViT-B-16") | {"embed_dim": 64}
    config["vision_cfg"] |= {"width": 64, "patch_size": 112}
    config["text_cfg"] |= {"width": 64, "heads": 1}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "narrow", config)
    return "narrow"


def test_predict_is_compared_with_open_clip(arch, times, monkeypatch):
    order, seconds = [], {"open_clip": 1.0, "ZeroshotCLIP": 0.5, "MPL": 2.0}

    def timed(function, device):
        function()
        order.append(list(seconds)[len(order) % 3])
        return seconds[order[-1]]

    monkeypatch.setattr(measuring, "timed", timed)
    found = times(predict_time, "--arch", arch, "--images", 3, "--rounds", 2, "--classes", 2, "--batch", 2)
    assert order == list(seconds) * 2
    found = [(each["pass"], each["images_per_s"], each["ratio"]) for each in found]
    assert found == [("open_clip", 3, 1), ("ZeroshotCLIP", 6, 2), ("MPL", 1.5, 0.5)]


def test_published_loops_of_views_give_the_same_answers(arch, times, monkeypatch):
    seconds = iter([4.0, 2.0, 1.0, 1.0])
    monkeypatch.setattr(measuring, "timed", lambda function, device: next(seconds))
    found = times(views_time, "--arch", arch, "--rounds", 1, "--classes", 3, "--views", 20)
    speeds = [(each["method"], each["ours, images/s"], each["ratio"]) for each in found]
    assert speeds == [("TPT", 0.5, 2), ("ZERO", 1, 1)]
    assert max(each["difference"] for each in found) < 1e-3


# gpu_check, every line but CUDA's own


@pytest.fixture
def check(monkeypatch, tmp_path, capsys):
    """`check(*options)` -> (exit status, its page, its JSON), without a GPU; the published numbers are not computed."""
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    run = subprocess.run

    def without_golden(command, **options):
        return run(command, **options) if "tests/test_golden.py" not in command else check.golden

    def check(*options):
        with pytest.raises(SystemExit) as end:
            gpu_check.main(["--page", str(tmp_path / "p.md"), "--json", str(tmp_path / "p.json"), *map(str, options)])
        assert capsys.readouterr().out.strip() == (tmp_path / "p.md").read_text().strip()
        return end.value.code, (tmp_path / "p.md").read_text(), json.loads((tmp_path / "p.json").read_text())

    monkeypatch.setattr(gpu_check.subprocess, "run", without_golden)
    check.golden = subprocess.CompletedProcess([], 0, "1 passed in 1 s\n", "")
    return check


@pytest.mark.thorough  # `make gpu-rehearsal` runs it too, on the stand-in
def test_reduced_form_measures_each_part(check):
    status, page, found = check()
    assert status == 0, found["left_out"]
    rows: dict = {}
    for each in found["records"]:
        rows.setdefault(each["part"], []).append(each)
    assert list(rows) == ["training step", "published numbers", "against fp32", "test pass"]
    assert rows["published numbers"][0]["result"] == "1 passed in 1 s"
    assert {each["prec"] for each in rows["against fp32"]} == {"bf16", "amp"}
    for each in rows["against fp32"]:
        assert 0 < each["logits"] < 2 and 0 < each["gradient"] < 0.2 and abs(each["loss after 2 steps"]) < 0.5
    steps = {(each["form"], each["prec"]) for each in rows["training step"] if each["ms"] > 0}
    assert steps == {(form, prec) for form in ("fast", "plain") for prec in ("fp32", "amp")}
    assert [each["decoded"] for each in rows["test pass"] if each["images a second"] > 0] == ["each time", "kept"]
    needs = {f"{what} needs a GPU" for what in ("fp16", "MODEL.COMPILE", "MODEL.CUDA_GRAPHS")}
    assert {each["why"] for each in found["left_out"]} == needs | {"it is measured on a GPU only"}
    assert "Reduced form" in page and page.count("\n| --- |") == 4 and "- it is measured on a GPU only: peak" in page


def test_without_time_all_is_left_out_and_named(check):
    status, page, found = check("--minutes", "0")
    assert status == 0 and found["records"] == []
    assert {each["why"] for each in found["left_out"]} == {"no time left"}
    assert "- no time left: training step: CoOp, 5, fp16, fast; training step: CoOp, 5, fp16, plain;" in page


def test_failure_is_named_and_the_time_limit_ends_a_measurement(check, monkeypatch):
    """The page has what was measured before an end that nothing can catch."""
    pages = []

    def broken(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 1 GiB")

    def parts(running):
        yield "published numbers", gpu_check.golden_cases, [{"cases": "mpl"}]
        yield "peak memory", gpu_check.peak, [{"method": "MPL", "classes": 5, "prec": "fp32", "form": "fast"}]
        pages.append(running.args.page.read_text())
        running.end = time.monotonic() + 0.1
        yield "training step", lambda check, method: time.sleep(60), [{"method": "endless"}]

    monkeypatch.setattr(gpu_check, "parts", parts)
    monkeypatch.setattr(gpu_check.measuring, "build", broken)
    check.golden = subprocess.CompletedProcess([], 1, "1 failed in 1 s\n", "")
    status, page, found = check()
    assert status == 1
    assert "- failed: RuntimeError: 1 failed in 1 s: published numbers: mpl" in page
    memory = "- failed: OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB: peak memory: MPL, 5, fp32, fast"
    assert memory in page and memory in pages[0] and [("was ended" in each) for each in (*pages, page)] == [True, False]
    assert "- no time left: training step: endless" in page


# A checkout in the form of CoOp's, with a method of its own
OFFICIAL = dict.fromkeys(("clip/__init__.py", "datasets/__init__.py", "trainers/__init__.py"), "") | {
    "train.py": """
from yacs.config import CfgNode
import datasets
import trainers.coop

def extend_cfg(cfg):
    cfg.TRAINER.COOP = CfgNode({"PREC": "fp16"})
""",
    "clip/clip.py": """
from importlib.util import find_spec
assert find_spec("measuring") is None, "modules of benchmarks/ could hide those of the official code"

def _download(url, root):
    raise AssertionError("it has to be replaced")
""",
    "trainers/coop.py": """
import torch
from clip import clip
from dassl.engine import TRAINER_REGISTRY, TrainerX

@TRAINER_REGISTRY.register()
class CoOp(TrainerX):
    def build_model(self):
        width = torch.load(clip._download("ViT-B-16.pt", "~/.cache"))["text_projection"].shape[1]
        self.model = torch.nn.Linear(width, len(self.dm.dataset.classnames)).half()

    def forward_backward(self, batch):
        scores = self.model(batch["img"].flatten(1)[:, : self.model.in_features])
        return {"loss": torch.nn.functional.cross_entropy(scores, batch["label"]).item()}
""",
    "configs/trainers/CoOp/vit_b16.yaml": "OPTIM:\n  LR: 0.002\n",
}


@pytest.fixture
def checkout(tmp_path):
    for name, text in OFFICIAL.items():
        (tmp_path / "official" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "official" / name).write_text(text)
    return tmp_path / "official"


@pytest.mark.thorough
def test_steps_of_official_code_are_measured_in_its_own_packages(check, checkout, monkeypatch):
    facts = gpu_check.grid(method=["CoOp", "MPL"], classes=[5], prec=["fp32"], form=["official"])
    monkeypatch.setattr(gpu_check, "parts", lambda check: [("training step", gpu_check.step, facts)])
    status, page, found = check("--official", checkout)
    assert status == 0 and [each["form"] for each in found["records"]] == ["official"], page
    assert found["records"][0]["ms"] > 0
    assert "has no configs/trainers/MPL/vit_b4_c1_add2_rm1.yaml: training step: MPL, 5, fp32, official" in page


@pytest.mark.parametrize("part", official.PARTS)
def test_folder_without_official_code_is_named(part, checkout, ended):
    (checkout / part).rename(checkout / "elsewhere")
    error = ended(lambda: cli_main(lambda: gpu_check.main(["--official", str(checkout)]))).error
    assert error == f"error: {checkout} has no {part}: give --official a checkout in the form of CoOp's"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(tmp_path):
    with pytest.raises(SystemExit) as end:
        gpu_check.main(["--minutes", "3", "--page", str(tmp_path / "p.md"), "--json", str(tmp_path / "p.json")])
    found = json.loads((tmp_path / "p.json").read_text())
    assert end.value.code == 0, found["left_out"]


def test_published_steps_compute_the_same_without_dropout(backbones):
    found, backbone = [], str(backbones(224, 112, 12, 12, 64, 64, 64))
    for form in ("fast", "plain", "published"):
        trainer = measuring.build("CLIPLoRA", 3, backbone, form)
        assert trainer.model.towers is TOWERS["fast" if form == "fast" else "plain"]
        for adapter in trainer.model.prompt_learner.extra_modules.values():
            adapter.p = 0
        for name, parameter in trainer.model.named_parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        batch = official.random_batch(3, False)
        loss, _ = trainer.loss(trainer.model.output(batch["img"]), batch["label"])
        found.append([loss, *torch.autograd.grad(loss, trainer.model.parameters())])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-4)


def test_dashboard_has_a_section_for_each_program(monkeypatch, tmp_path):
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
    timed = [each for each in dashboard.BENCHMARKS.values() if each.command.split()[0] in programs]
    assert len(timed) == len(dashboard.BENCHMARKS) - 2  # the others measure as they start
    monkeypatch.setattr(measuring, "show", lambda *_: None)
    monkeypatch.setattr(measuring, "random_clip", lambda arch: torch.nn.Linear(1, 1))
    for each in timed:
        program, *options = each.command.split()
        programs[program].main([*options, "--rounds", "1"])
