"""The configurations of candidates."""

from functools import lru_cache
from typing import Any

from yacs.config import CfgNode

import trainers
from inference.description import configuration

from .candidates import Candidate

BATCH = 256  # features of a step
Pairs = tuple[tuple[str, Any], ...]


def settings_of(candidate: Candidate) -> CfgNode:
    """The configuration of a candidate, which nobody can change."""
    return configuration_of(
        candidate.method,
        *(tuple(part.items()) for part in (candidate.settings, candidate.training)),
    )


@lru_cache(100)  # those of all candidates
def configuration_of(method: str, settings: Pairs, training: Pairs) -> CfgNode:
    kind = trainers.predicting()[method]
    cfg = configuration(method)
    cfg.merge_from_other_cfg({"TRAINER": {kind.section(): {"PREC": "fp32", **dict(settings)}}})
    cfg.merge_from_other_cfg(
        {"OPTIM": {"MAX_EPOCH": 1, "LR_SCHEDULER": "cosine", **dict(training)}}
    )
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = BATCH
    cfg.freeze()
    return cfg
