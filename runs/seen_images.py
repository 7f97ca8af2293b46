"""The images that a run learns from, chooses on and is tested on: seen.npz in its output folder."""

from pathlib import Path
from typing import Any

from inference.seen import NotedImages

MOST = 20_000  # training images, and test images


class SeenByRun:
    """Notes the images of a run when it reads them, and writes seen.npz at its end: an observer
    (`run.wanted_observers`).
    """

    def __init__(self, spec: Any, trainer: Any):
        self.folder = Path(spec.cfg.OUTPUT_DIR)
        data = trainer.dm.dataset
        self.learned = data.train_x
        by_val = any(choice.split == "val" for choice in trainer.method.choices)
        self.chosen = data.val if by_val else []
        self.tested = data.test if len(data.test) <= MOST else []
        self.noted = NotedImages(
            [*self.learned, *self.chosen], self.tested, spec.cfg.INPUT.MAX_PIXELS
        )
        for loader in (trainer.dm.train_loader_x, trainer.dm.val_loader, trainer.dm.test_loader):
            if loader is not None:
                loader.dataset.on_read = self.noted.note

    @staticmethod
    def is_wanted(spec: Any, trainer: Any) -> bool:
        return not spec.args.eval_only and len(trainer.dm.dataset.train_x) <= MOST

    def finish(self) -> dict[str, Any]:
        seen = self.noted.seen(self.learned, "learned")
        seen += self.noted.seen(self.chosen, "chosen")
        seen += self.noted.seen(self.tested, "tested")
        seen.write(self.folder)
        return {}
