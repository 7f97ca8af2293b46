"""What the methods do on the published Dassl 0.6.3, without it: its names, and what stands in for
it.
"""

import ast
import inspect
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.engine import SimpleTrainer, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from marks import one_line
from yacs.config import CfgNode

import trainers
from common.start import ROOT
from trainers.base import compat
from trainers.base.compat import warmed_up
from trainers.base.trainer import MethodTrainer

# The parameters of its functions and classes
SIGNATURES = {
    "DatasetBase": "train_x train_u val test",
    "DatasetWrapper": "cfg data_source transform is_train",
    "Datum": "impath label domain classname",
    "build_dataset": "cfg",
    "build_lr_scheduler": "optimizer optim_cfg",
    "build_optimizer": "model optim_cfg param_groups",
    "build_trainer": "cfg",
    "clean_cfg": "cfg trainer",
    "compute_accuracy": "output target topk",
    "count_num_param": "model params",
    "generate_fewshot_dataset": "data_sources num_shots repeat",
    "get_cfg_default": "",
    "load_checkpoint": "fpath",
    "load_pretrained_weights": "model weight_path",
    "read_image": "path",
    "register": "obj force",
    "register_model": "name model optim sched",
    "save_model": "epoch directory is_best val_result model_name",
    "set_random_seed": "seed",
}
# The methods of its TrainerX
HOOKS = """
    after_epoch after_train before_epoch before_train build_data_loader build_model check_cfg
    close_writer detect_anomaly forward_backward get_current_lr get_model_names init_writer
    load_model model_backward model_backward_and_update model_inference model_update
    model_zero_grad parse_batch_test parse_batch_train register_model resume_model_if_exist
    run_epoch save_model set_model_mode test train update_lr write_scalar
"""


@pytest.fixture
def published(monkeypatch):
    """The toolbox in the place of the published Dassl."""
    monkeypatch.setattr(compat, "IS_PUBLISHED", True)


def parsed(folder: str) -> Iterator[ast.AST]:
    for file in (ROOT / folder).rglob("*.py"):
        yield from ast.walk(ast.parse(file.read_text()))


def test_calls_pass_parameters_of_the_published_functions():
    calls = [
        node
        for folder in ("trainers", "datasets")
        for node in parsed(folder)
        if isinstance(node, ast.Call)
    ]
    checked = 0
    for call in calls:
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        of_datasets = isinstance(call.func, ast.Name) or name.startswith(("generate", "register"))
        if name not in SIGNATURES or not of_datasets:
            continue
        keywords = {keyword.arg for keyword in call.keywords if keyword.arg}
        assert keywords <= set(SIGNATURES[name].split()), f"line {call.lineno}: {name}"
        checked += 1
    assert checked > 40


def test_the_trainer_calls_what_the_published_trainer_has():
    """Hooks that only the toolbox has may call the toolbox's."""
    hooks = set(HOOKS.split())
    tree = ast.parse(Path(inspect.getfile(MethodTrainer)).read_text())
    kind = next(node for node in tree.body if getattr(node, "name", "") == "MethodTrainer")
    for function in kind.body:
        if not isinstance(function, ast.FunctionDef) or function.name not in hooks:
            continue
        of_parent = {
            node.attr
            for node in ast.walk(function)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "super()"
        }
        assert of_parent <= hooks, function.name
    assert hooks <= set(dir(TrainerX))


# ---------------------------------------------------------------- settings in nodes of yacs


def plain_cfg() -> CfgNode:
    """The default configuration as the published Dassl has it: in plain nodes of yacs."""
    cfg = CfgNode(get_cfg_default())
    for key in ("CACHE", "CACHE_GB"):
        cfg.pop(key)
    cfg.OPTIM.pop("ADAM_EPS")
    trainers.extend_cfg(cfg)
    return cfg


def test_rate_of_a_head_has_its_default_in_a_plain_node(build, monkeypatch):
    """yacs holds a setting to one type, so a setting of several types is None there."""
    assert plain_cfg().OPTIM.LR_EXP is None
    trainer = build("DePT+CoOp")
    groups = trainer.optim.param_groups
    options = CfgNode(trainer.cfg.OPTIM)
    options.LR_EXP = None
    monkeypatch.setattr(trainer.method, "cfg", CfgNode({"OPTIM": options}))
    optimizer, _ = trainer.method.build_optimizer()
    assert [x["lr"] for x in optimizer.param_groups] == [x["lr"] for x in groups]


@pytest.mark.parametrize("name", ["adam", "amsgrad", "adamw", "radam", "rmsprop"])
def test_epsilon_is_set_although_the_published_optimisers_leave_it_out(name, monkeypatch):
    options = plain_cfg().OPTIM
    assert options.ADAM_EPS == get_cfg_default().OPTIM.ADAM_EPS
    options.NAME = name
    model = torch.nn.Linear(1, 1)
    usual = build_optimizer(model, options).param_groups[0]["eps"]
    monkeypatch.setattr(compat, "build_optimizer", lambda *_: build_optimizer(model, options))
    settings = options.clone()
    settings.ADAM_EPS = 0.125
    found = compat.published_optimizer(model, settings).param_groups[0]["eps"]
    assert found == (usual if name == "rmsprop" else 0.125)


# ---------------------------------------------------------------- the warm-up


def options_of(**changed) -> CfgNode:
    options = get_cfg_default().OPTIM
    for key, value in {"WARMUP_EPOCH": 3, "MAX_EPOCH": 9, "GAMMA": 0.5, **changed}.items():
        options[key] = value
    return options


def two_groups() -> torch.optim.SGD:
    """An optimiser of two groups, of different rates."""
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    return torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": 0.5}], lr=0.02)


def rates(optimizer, scheduler, epochs: int) -> list[list[float]]:
    found = []
    for _ in range(epochs):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("kind", ["constant", "linear"])
@pytest.mark.parametrize("recount", [True, False])
@pytest.mark.parametrize(
    "after",
    [
        {"LR_SCHEDULER": "cosine"},
        {"LR_SCHEDULER": "single_step", "STEPSIZE": (2,)},
        {"LR_SCHEDULER": "multi_step", "STEPSIZE": (2, 5)},
    ],
)
def test_warm_up_has_the_rates_of_dassl(kind, recount, after, tmp_path):
    options = options_of(WARMUP_TYPE=kind, WARMUP_RECOUNT=recount, **after)
    ours, theirs = two_groups(), two_groups()
    expected = rates(theirs, build_lr_scheduler(theirs, options), 9)
    scheduler = warmed_up(ours, options)
    assert rates(ours, scheduler, 5) == expected[:5]
    state = {"scheduler": scheduler.state_dict(), "optimizer": ours.state_dict()}
    torch.save(state, tmp_path / "state")
    resumed = two_groups()
    scheduler = warmed_up(resumed, options)
    state = torch.load(tmp_path / "state", weights_only=True)
    resumed.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    assert rates(resumed, scheduler, 4) == expected[5:]


def test_optimiser_and_schedule_suit_the_imported_dassl(monkeypatch):
    assert compat.optimizer_of is build_optimizer
    assert compat.build_schedule is build_lr_scheduler
    monkeypatch.delattr(SimpleTrainer, "test_outputs")  # the published one has none
    again = runpy.run_path(compat.__file__)
    assert again["optimizer_of"] is again["published_optimizer"]
    assert again["build_schedule"] is again["published_schedule"]


def test_without_a_warm_up_the_state_equals_dassl():
    options = options_of(WARMUP_EPOCH=0)
    expected = build_lr_scheduler(two_groups(), options).state_dict()
    assert compat.published_schedule(two_groups(), options).state_dict() == expected


def test_unknown_warm_up_is_named():
    options = CfgNode(options_of())
    options.WARMUP_TYPE = "cubic"
    with one_line("OPTIM.WARMUP_TYPE is cubic: give one of constant, linear"):
        warmed_up(two_groups(), options)


# ---------------------------------------------------------------- runs


def test_a_run_has_the_same_prompts_with_the_other_warm_up(build, monkeypatch):
    learned = []
    for build_schedule in (compat.published_schedule, build_lr_scheduler):
        monkeypatch.setattr(trainers.base.method, "build_schedule", build_schedule)
        trainer = build("CoOp", output=build_schedule.__name__)
        trainer.train()
        learned.append(trainer.method.saved_module().state_dict())
    assert learned[0].keys() == learned[1].keys()
    assert all(torch.equal(learned[0][key], learned[1][key]) for key in learned[0])


def test_objects_in_a_checkpoint_are_refused_in_one_line(build, published, monkeypatch):
    trainer = build("CoOp")
    trainer.train()
    folder = trainer.output_dir
    file = trainer.method.checkpoint_in(folder, None)
    content = torch.load(file, weights_only=True)
    torch.save(content | {"scheduler": {"successor": trainer.optim}}, file)
    monkeypatch.setattr(compat, "load_checkpoint", torch.load)
    with one_line(f"cannot read {file}: it is damaged", "load it with the toolbox"):
        trainer.load_model(folder)


def test_a_method_with_a_state_does_not_resume(build, published):
    build("PromptSRC").train()
    with one_line("PromptSRC cannot resume: the published Dassl does not save its gpa"):
        build("PromptSRC").train()
