"""Learning-rate schedules from ``cfg.OPTIM``, stepped once per epoch: torch's, after a warm-up."""

from dassl.config.defaults import SCHEDULERS, WARMUPS
from dassl.utils import check_availability
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, StepLR

from common.warm_up import WarmUp


class ConstantWarmupScheduler(WarmUp):
    """All parameter groups have rate ``cons_lr`` for ``warmup_epoch`` epochs, then follow
    ``successor``. ``verbose`` is unused; published callers pass it.
    """

    def __init__(self, optimizer, successor, warmup_epoch, cons_lr, last_epoch=-1, verbose=False):
        super().__init__(optimizer, successor, warmup_epoch, cons_lr, last_epoch=last_epoch)


class LinearWarmupScheduler(WarmUp):
    """``min_lr`` in the first epoch, then base rate * epoch / ``warmup_epoch``, then follows
    ``successor``. ``verbose`` is unused.
    """

    def __init__(self, optimizer, successor, warmup_epoch, min_lr, last_epoch=-1, verbose=False):
        super().__init__(optimizer, successor, warmup_epoch, min_lr, True, last_epoch)


def build_lr_scheduler(optimizer, optim_cfg):
    """Build the scheduler ``LR_SCHEDULER`` of ``cfg.OPTIM``, after a warm-up if WARMUP_EPOCH is
    above 0.

    ``single_step`` multiplies the rate by GAMMA every STEPSIZE[-1] epochs (every MAX_EPOCH if that
    is below 1), ``multi_step`` at each of STEPSIZE; ``cosine`` reaches 0 at MAX_EPOCH. With
    WARMUP_RECOUNT these epochs are counted from the end of the warm-up. The scheduler's
    ``state_dict()`` has plain values only. Raises UsageError if LR_SCHEDULER or WARMUP_TYPE is
    unknown.
    """
    check_availability(optim_cfg.LR_SCHEDULER, SCHEDULERS)
    check_availability(optim_cfg.WARMUP_TYPE, WARMUPS)
    if optim_cfg.LR_SCHEDULER == "cosine":
        scheduler = CosineAnnealingLR(optimizer, float(optim_cfg.MAX_EPOCH))
    elif optim_cfg.LR_SCHEDULER == "multi_step":
        scheduler = MultiStepLR(optimizer, optim_cfg.STEPSIZE, optim_cfg.GAMMA)
    else:
        stepsize = optim_cfg.STEPSIZE[-1]
        scheduler = StepLR(
            optimizer, stepsize if stepsize > 0 else optim_cfg.MAX_EPOCH, optim_cfg.GAMMA
        )
    if optim_cfg.WARMUP_EPOCH <= 0:
        return scheduler
    if not optim_cfg.WARMUP_RECOUNT:
        # Stepping it there would change the rates that it starts from
        scheduler.last_epoch = optim_cfg.WARMUP_EPOCH
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(
            optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_CONS_LR
        )
    return LinearWarmupScheduler(
        optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_MIN_LR
    )
