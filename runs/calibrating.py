"""TEST.CALIBRATE: a calibration after the test of a run, and what it changes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.errors import UsageError
from common.names import title
from common.results import CALIBRATION
from inference.calibrated import Calibration, write_calibration
from inference.calibrated_outputs import Outputs, check_test_images, count_shared, fit, report
from inference.load import calibration_of, model_file
from inference.options import LoadOptions
from trainers import MethodTrainer


class Calibrated:
    """Fits a calibration after a test, and reports its effect (TEST.CALIBRATE): an observer
    (`run.wanted_observers`).

    A training run fits it on its validation images, and writes calibration.json. A test of the
    prompts of another run takes that run's.
    """

    def __init__(self, spec: Any, trainer: Any):
        self.spec = spec
        self.cfg = spec.cfg
        self.trainer = trainer
        self.prompts: Calibration | None = None
        self.asked = True
        if not isinstance(trainer, MethodTrainer):
            raise UsageError("TEST.CALIBRATE needs a method of this project", "leave it out")
        method = trainer.method
        if method.kind == "transductive":
            print(f"No calibration: {spec.cfg.TRAINER.NAME} learns from the images of a test")
            self.asked = False
            return
        if spec.args.eval_only and spec.args.model_dir:
            options = LoadOptions(epoch=spec.args.load_epoch)
            self.prompts = calibration_of(Path(spec.args.model_dir), type(method), options)
        if self.prompts is None:
            self.check_images(trainer.dm.dataset)

    def check_images(self, dataset: Any) -> None:
        """Check that there are validation images that are not those of the test."""
        cfg = self.cfg
        if cfg.DATASET.SUBSAMPLE_CLASSES == "new":
            run = self.spec.args.model_dir or "the run"
            fault = f"{run} has no {CALIBRATION}, and new classes have that of the base"
            raise UsageError(
                fault, "test its base classes with TEST.CALIBRATE True first, or leave it out"
            )
        if not dataset.val or cfg.TEST.SPLIT == "val":
            fault = "TEST.CALIBRATE needs validation images that are not tested"
            raise UsageError(fault, "set DATASET.HOLD_OUT True, or leave it out")
        self.test_images = count_shared(dataset.val, dataset.test)
        accepted = cfg.TEST.SELECT_ON_TEST
        check_test_images(
            self.test_images, len(dataset.val), title(cfg), accepted, "TEST.SELECT_ON_TEST True"
        )

    def finish(self) -> dict[str, Any]:
        """`calibration` for results.json: `report`."""
        columns = self.trainer.evaluator.predictions if self.asked else {}
        if not columns:
            return {}
        test = Outputs(columns["logits"].astype(float), columns["label"].astype(int))
        method = self.trainer.method
        names = method.class_names
        if self.prompts is None:
            held, fitted = self.fit(names)
            # Else the prompts are in another folder
            if not (self.spec.args.eval_only and method.learns):
                folder = Path(self.cfg.OUTPUT_DIR)
                write_calibration(folder, fitted, model_file(folder, type(method)))
            return {"calibration": report(fitted, test, held=held)}
        return {"calibration": report(self.prompts, test)}

    @torch.no_grad()
    def fit(self, names: Sequence[str]) -> tuple[Outputs, Calibration]:
        trainer = self.trainer
        cfg = self.cfg
        trainer.set_model_mode("eval")
        items = trainer.val_loader.dataset.data_source
        batches = list(trainer.test_outputs(trainer.val_loader))
        logits, labels = (torch.cat(column).cpu().numpy() for column in zip(*batches, strict=True))
        held = Outputs(logits.astype(float), labels.astype(int))
        chose = any(choice.split == "val" for choice in trainer.method.choices)
        facts = {"test_images": self.test_images, "chosen_images": len(items) if chose else 0}
        return held, fit(held, names, items, f"validation images of {title(cfg)}", **facts)
