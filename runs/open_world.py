"""OpenworldAUC of a test of base and new classes together, by prompts that were learned on the base
classes.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.names import title
from common.results import read_results
from datasets.base import number_of_base_classes
from measures.metrics import openworld_auc


class OpenWorld:
    """Adds `open_world` to the results of such a test: an observer (`run.wanted_observers`).

    The score of an image is the largest probability of a base class, by the softmax over all
    classes. Its answer is the largest logit among the classes of its own half.
    """

    def __init__(self, spec: Any, trainer: Any):
        self.rows: list[Tensor] = []
        self.base = number_of_base_classes(trainer.dm.num_classes)
        trainer.observers.append(self)

    def reset(self) -> None:
        self.rows = []

    def process(self, logits: Tensor, labels: Tensor) -> None:
        self.rows.append(of_batch(logits, labels, self.base))

    def finish(self) -> dict[str, Any]:
        if not self.rows:  # TEST.NO_TEST
            return {}
        score, correct, is_base = torch.cat(self.rows).cpu().numpy().T
        base = is_base == 1
        new = is_base == 0
        if not (base.any() and new.any()):
            return {}
        measures = openworld_auc(score[base], score[new], correct[base], correct[new])
        print(
            f"* OpenworldAUC: {measures['openworld_auc']:.2f} (base against new: AUROC "
            f"{measures['auroc']:.2f})"
        )
        return {"open_world": measures}


def is_union(spec: Any) -> bool:
    """Whether a test is of all classes of a dataset, with the prompts of a run on its base
    classes.
    """
    if not spec.args.model_dir or spec.cfg.DATASET.SUBSAMPLE_CLASSES != "all":
        return False
    learned = read_results(Path(spec.args.model_dir))
    return bool(learned and (learned.classes, learned.dataset) == ("base", title(spec.cfg)))


def of_batch(logits: Tensor, labels: Tensor, base: int) -> Tensor:
    """(batch, 3), in double precision: the score, whether the answer is right, and whether the
    label is a base class.

    Args:
        logits: (batch, classes), the first `base` of them of base classes.
        labels: (batch,).
    """
    z = logits.double()
    is_base = labels < base
    others = is_base[:, None] != (torch.arange(z.shape[1], device=z.device) < base)
    answer = z.masked_fill(others, -torch.inf).argmax(dim=1)
    score = z.softmax(dim=1)[:, :base].amax(dim=1)
    return torch.stack([score, (answer == labels).double(), is_base.double()], dim=1)
