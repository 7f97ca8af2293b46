"""Optimisers and schedules against recorded learning rates and torch's own."""

import json
from pathlib import Path

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.lr_scheduler import LinearWarmupScheduler
from dassl.utils import UsageError

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "lr_schedules.json"
# Options shared by all recorded schedules
BASE = {"NAME": "sgd", "LR": 0.0035, "MAX_EPOCH": 5, "LR_SCHEDULER": "cosine"}
BASE |= {"WARMUP_EPOCH": 1, "WARMUP_TYPE": "constant", "WARMUP_CONS_LR": 1e-5}


def optim_cfg(**options):
    cfg = get_cfg_default().OPTIM
    for key, value in {**BASE, **options}.items():
        cfg[key] = value
    return cfg


def build(model=None, **options):
    cfg = optim_cfg(**options)
    optimizer = build_optimizer(model or torch.nn.Linear(2, 2), cfg)
    return optimizer, build_lr_scheduler(optimizer, cfg)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_skipped_first_step_leaves_a_fused_optimiser_as_any_other(momentum, monkeypatch):
    """Its momentum was memory that nobody had set, and a run with PREC amp diverged in its second
    step.
    """
    learned = {}
    for fused in (None, True):
        monkeypatch.setattr("dassl.optim.optimizer._on_cuda", lambda groups, fused=fused: fused)
        torch.manual_seed(1)
        model = torch.nn.Linear(300, 300)
        optimizer, _ = build(model, LR=0.1, MOMENTUM=momentum)
        assert optimizer.defaults["fused"] is fused
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for scale in (float("inf"), 1.0, 0.5):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 300)).square().mean() * scale).backward()
            scaler.step(optimizer)
            scaler.update()
        learned[fused] = torch.cat(
            [parameter.detach().flatten() for parameter in model.parameters()]
        )
    assert torch.allclose(learned[None], learned[True], rtol=1e-6, atol=1e-7)


def test_a_fused_optimiser_has_momentum_of_what_learns_only(monkeypatch):
    """It had momentum of a whole frozen CLIP, on the GPU and in each checkpoint."""
    monkeypatch.setattr("dassl.optim.optimizer._on_cuda", lambda groups: True)
    model = torch.nn.Linear(2, 2)
    optimizer, _ = build(model)
    for frozen in (True, False):
        model.weight.requires_grad_(not frozen)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert (model.weight in optimizer.state) is not frozen and model.bias in optimizer.state


def rates(optimizer, scheduler, epochs):
    found = []
    for _ in range(epochs):
        assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


recorded = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else []


@pytest.mark.golden
@pytest.mark.skipif(
    not recorded, reason="the recorded schedules are not part of an installed toolbox"
)
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "entry", recorded, ids=lambda entry: "-".join(map(str, entry["optim"].values())) or "base"
)
def test_schedules_equal_recorded_rates(entry):
    optimizer, scheduler = build(**entry["optim"])
    assert rates(optimizer, scheduler, len(entry["lr_per_epoch"])) == entry["lr_per_epoch"]
    json.dumps(scheduler.state_dict())  # plain values


def test_linear_warmup_with_several_groups():
    """All groups start at the same absolute rate, then follow their own; single_step without
    STEPSIZE keeps it.
    """
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    options = {"STAGED_LR": True, "NEW_LAYERS": ("1",), "BASE_LR_MULT": 0.1, "LR": 0.3}
    options |= {"LR_SCHEDULER": "single_step", "STEPSIZE": (-1,)}
    optimizer, scheduler = build(
        model, WARMUP_TYPE="linear", WARMUP_EPOCH=3, WARMUP_MIN_LR=1e-4, **options
    )
    assert isinstance(scheduler, LinearWarmupScheduler)
    assert scheduler.get_last_lr() == [1e-4, 1e-4]
    rates(optimizer, scheduler, 1)
    assert scheduler.get_last_lr() == pytest.approx([0.01, 0.1])
    for epochs in (2, 4):
        rates(optimizer, scheduler, epochs)
        assert scheduler.get_last_lr() == pytest.approx([0.03, 0.3])


ADAM = {"betas": (0.8, 0.95), "eps": 1e-3}


@pytest.mark.parametrize(
    ("name", "kind", "own"),
    [
        ("adam", "Adam", ADAM),
        ("amsgrad", "Adam", ADAM | {"amsgrad": True}),
        ("adamw", "AdamW", ADAM),
        ("radam", "RAdam", ADAM),
        ("rmsprop", "RMSprop", {"momentum": 0.7, "alpha": 0.6}),
        ("sgd", "SGD", {"momentum": 0.7, "dampening": 0.0, "nesterov": True}),
    ],
)
def test_optimizers_use_all_options(name, kind, own):
    options = {"NAME": name, "LR": 0.1, "WEIGHT_DECAY": 0.2, "MOMENTUM": 0.7, "SGD_NESTEROV": True}
    cfg = optim_cfg(ADAM_BETA1=0.8, ADAM_BETA2=0.95, ADAM_EPS=1e-3, RMSPROP_ALPHA=0.6, **options)
    model = torch.nn.Linear(2, 2)
    built = build_optimizer(model, cfg)
    wanted = getattr(torch.optim, kind)(model.parameters(), lr=0.1, weight_decay=0.2, **own)
    assert type(built) is type(wanted) and built.defaults == wanted.defaults


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Linear(2, 2)
        self.fc = torch.nn.Linear(2, 3)
        self.ctx = torch.nn.Parameter(torch.zeros(4))  # not in a child


def test_staged_lr():
    model = Net()
    cfg = optim_cfg(STAGED_LR=True, NEW_LAYERS=("fc",), LR=0.5, BASE_LR_MULT=0.1)
    base, new = build_optimizer(torch.nn.DataParallel(model), cfg).param_groups
    assert (base["lr"], new["lr"]) == (0.05, 0.5)
    assert {id(p) for p in new["params"]} == {id(p) for p in model.fc.parameters()}
    assert {id(p) for p in base["params"]} == {
        id(model.ctx),
        *(id(p) for p in model.backbone.parameters()),
    }
    with pytest.raises(UsageError, match="nn.Module"):
        build_optimizer(Net().parameters(), optim_cfg(STAGED_LR=True, NEW_LAYERS=("fc",)))
    with pytest.warns(UserWarning, match="NEW_LAYERS"):
        build_optimizer(Net(), optim_cfg(STAGED_LR=True))
