"""Optimisers from ``cfg.OPTIM``."""

import warnings

import torch
import torch.nn as nn
from dassl.config.defaults import OPTIMISERS
from dassl.utils import UsageError, check_availability


def build_optimizer(model, optim_cfg, param_groups=None):
    """Build the optimiser ``optim_cfg.NAME``.

    Args:
        model (nn.Module or iterable): a model, or its parameters, or parameter groups as torch's
            optimisers take them.
        optim_cfg (CfgNode): ``cfg.OPTIM``. With STAGED_LR, the children of the model that
            NEW_LAYERS names learn at LR and all others at LR * BASE_LR_MULT.
        param_groups (iterable, optional): those to use instead of the model's, without STAGED_LR.

    Raises UsageError if NAME is unknown, STAGED_LR is used with something other than an
    ``nn.Module``, or SGD_NESTEROV with a momentum of 0 or with damping.
    """
    name = optim_cfg.NAME
    check_availability(name, OPTIMISERS)
    if optim_cfg.STAGED_LR:
        param_groups = _staged_groups(model, optim_cfg, param_groups)
    elif param_groups is None:
        param_groups = model.parameters() if isinstance(model, nn.Module) else model
    param_groups = list(param_groups)
    common = {"lr": optim_cfg.LR, "weight_decay": optim_cfg.WEIGHT_DECAY}
    adam = {
        "betas": (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2),
        "eps": optim_cfg.ADAM_EPS,
        **common,
    }
    if name == "sgd":
        return _sgd(param_groups, optim_cfg, common)
    if name == "rmsprop":
        return torch.optim.RMSprop(
            param_groups, momentum=optim_cfg.MOMENTUM, alpha=optim_cfg.RMSPROP_ALPHA, **common
        )
    if name == "radam":
        return torch.optim.RAdam(param_groups, **adam)
    adam["fused"] = _on_cuda(param_groups)
    if name == "adamw":
        return torch.optim.AdamW(param_groups, **adam)
    return torch.optim.Adam(param_groups, amsgrad=name == "amsgrad", **adam)


def _sgd(param_groups, optim_cfg, common):
    if optim_cfg.SGD_NESTEROV and (optim_cfg.MOMENTUM == 0 or optim_cfg.SGD_DAMPNING != 0):
        raise UsageError("OPTIM.SGD_NESTEROV needs OPTIM.MOMENTUM above 0 and OPTIM.SGD_DAMPNING 0")
    sgd = {"dampening": optim_cfg.SGD_DAMPNING, "nesterov": optim_cfg.SGD_NESTEROV, **common}
    fused = _on_cuda(param_groups) and optim_cfg.SGD_DAMPNING == 0 or None
    optimizer = torch.optim.SGD(param_groups, momentum=optim_cfg.MOMENTUM, fused=fused, **sgd)
    if fused and optim_cfg.MOMENTUM:
        optimizer.register_step_pre_hook(_start_momentum)
    return optimizer


def _on_cuda(param_groups):
    """True if all parameters are on a GPU, where a fused step is one launch and does not wait for a
    GradScaler.
    """
    parameters = []
    for group in param_groups:
        if isinstance(group, dict):
            group["params"] = (
                [group["params"]]
                if isinstance(group["params"], torch.Tensor)
                else list(group["params"])
            )
        parameters += group["params"] if isinstance(group, dict) else [group]
    return all(param.is_cuda for param in parameters) or None


def _start_momentum(optimizer, *_):
    """Start the momentum of parameters with a first gradient at zero, which without damping is what
    their step does.

    Else torch's fused SGD makes it in the first step, unset, and leaves it so if a GradScaler skips
    that step: the second one would add whatever the memory held. It also refuses a parameter that
    learns later than others. Frozen parameters, of which published trainers pass a whole CLIP, need
    no momentum.
    """
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None and optimizer.state[param].get("momentum_buffer") is None:
                optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)


def _staged_groups(model, optim_cfg, param_groups):
    """The groups that are given, or else two: the layers that NEW_LAYERS names, after all others
    with the lower rate.
    """
    if param_groups is not None:
        fault = "OPTIM.STAGED_LR is ignored: give each of param_groups its own lr"
        warnings.warn(fault, stacklevel=3)
        return param_groups
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"OPTIM.STAGED_LR needs an nn.Module, not a {type(model).__name__}: set it to False"
        )
    if isinstance(model, nn.DataParallel):
        model = model.module
    base = []
    new = []
    for name, param in model.named_parameters():
        (new if name.partition(".")[0] in optim_cfg.NEW_LAYERS else base).append(param)
    if not new:
        fault = "OPTIM.NEW_LAYERS names no layer of the model"
        warnings.warn(f"{fault}, so STAGED_LR only lowers the learning rate", stacklevel=3)
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]
