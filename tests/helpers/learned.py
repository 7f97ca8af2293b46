"""Finished runs on the drawn EuroSAT, and what their own test computes."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import torch
import yaml
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from drawn import arguments
from marks import of_json

import trainers
from configs.recipes import recipe
from inference import predict
from runs.config import extend_cfg
from train import main as train

NAMES = ["red", "green field", "blue_lake", "grey", "white snow", "black"]  # of the drawn EuroSAT
SHORT = [
    "DATASET.NUM_SHOTS",
    2,
    "OPTIM.MAX_EPOCH",
    1,
    "DATALOADER.NUM_WORKERS",
    0,
    "INPUT.SIZE",
    "(32, 32)",
]


def train_run(
    output: Path, root: Path, backbone: Path, method: str, *overrides, options=()
) -> None:
    """A run of the method's published settings with two shots and one epoch."""
    folder = trainers.methods()[method].config_folder or method
    pairs = "TRAINER.MPL.PROMPT_DEPTH", 9, *SHORT, *overrides
    published = {"trainer": method, "config": recipe(folder, "base2new").cfg, "options": options}
    with redirect_stdout(io.StringIO()):
        train(arguments(root, backbone, output, *pairs, **published))


def images_of(root: Path, labels: range, part: str = "test") -> dict[str, str]:
    """Path -> class name of the test images of these labels, or of another part of the split."""
    split = of_json(root / "eurosat/split_zhou_EuroSAT.json")[part]
    return {f"{root}/eurosat/2750/{path}": name for path, label, name in split if label in labels}


def own_test(run: Path, classes: str) -> tuple[list[str], torch.Tensor, list[str]]:
    """The test images of a run's dataset, their logits as its trainer computes them, and the class
    names.
    """
    cfg = get_cfg_default()
    extend_cfg(cfg, yaml.safe_load((run / "config.yaml").read_text())["TRAINER"]["NAME"])
    cfg.merge_from_file(str(run / "config.yaml"))
    cfg.merge_from_list(["DATASET.SUBSAMPLE_CLASSES", classes])
    trainer = build_trainer(cfg)
    trainer.load_model(str(run))
    trainer.set_model_mode("eval")
    batches = list(trainer.test_loader)
    logits = torch.cat(
        [trainer.model_inference(batch["img"].to(trainer.device)).cpu() for batch in batches]
    )
    return (
        [path for batch in batches for path in batch["impath"]],
        logits,
        trainer.dm.dataset.classnames,
    )


def rows_of(command, *arguments) -> list[dict]:
    """What predict prints as JSON; it must succeed and print nothing on stderr."""
    done = command(predict, *arguments, "--json")
    assert (done.status, done.errors) == (0, [])
    return json.loads(done.printed)
