"""Detection of images that show none of a run's classes (out-of-distribution).

For every method except the test-time ones.

A score is higher for images of the classes. With temperature T (TEST.OOD_T), logits z and p = softmax(z / T):

- MCM: the largest probability of softmax(z / 100 / T), a softmax over cosines (Ming et al., NeurIPS 2022)
- GL-MCM: MCM, plus the same over all patches (Miyai et al., IJCV 2025)
- MaxLogit: the largest z
- Energy: T log sum exp(z / T) (Liu et al., NeurIPS 2020)
- Entropy: sum p log p
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dassl.data.datasets import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from common.errors import UsageError, choose
from datasets import title
from trainers.base import PromptTrainer
from trainers.base.data_use import list_facts
from trainers.base.local import has_local_logits, local_logits

from .configs import CONFIGS, known_datasets
from .metrics import detection
from .predictions import tested_images

SCORES = ("MCM", "GL-MCM", "MaxLogit", "Energy", "Entropy")
NEW = "new"  # instead of a dataset: the new classes of the run's own, which has base classes
COSINES = 100.0  # divides logits; CLIP's scale is at most 100


@dataclass(frozen=True)
class Others:
    """Images that show none of the classes."""

    name: str  # as in TEST.OOD
    cfg: CfgNode  # that its dataset was read with
    images: list
    shared: list[str]  # names of classes of the run that it has, too


def check_settings(cfg: CfgNode) -> None:
    """Check TEST.OOD and TEST.OOD_SCORES: known names, and `new` for base classes only."""
    for name in cfg.TEST.OOD:
        choose(name, [*known_datasets(), NEW], "dataset for --ood")
        if name == NEW and cfg.DATASET.SUBSAMPLE_CLASSES != "base":
            what = f"--ood new needs base classes, and DATASET.SUBSAMPLE_CLASSES is {cfg.DATASET.SUBSAMPLE_CLASSES}"
            raise UsageError(what, "set it to base, or name a dataset")
    for score in cfg.TEST.OOD_SCORES:
        choose(score, SCORES, "score in TEST.OOD_SCORES")


def read_others(cfg: CfgNode, trainer: Any) -> list[Others]:
    """The images of TEST.OOD. Classes that both sides have are printed; their images are not left out.

    Raises UsageError if a dataset is missing, or the model does not have a score of TEST.OOD_SCORES.
    """
    if getattr(trainer, "kind", "") in ("test-time", "transductive"):
        what = f"--ood scores one view of each image, and {cfg.TRAINER.NAME} learns from the images of a test"
        raise UsageError(what, "leave out --ood")
    found = [others_of(name, cfg, trainer) for name in dict.fromkeys(cfg.TEST.OOD)]
    if not has_local_logits(getattr(trainer, "model", None)):
        why = f"GL-MCM compares patches with texts, and {cfg.TRAINER.NAME} with {cfg.MODEL.BACKBONE.NAME} cannot"
        if "GL-MCM" in cfg.TEST.OOD_SCORES:
            raise UsageError(f"{why} do that", "leave it out of TEST.OOD_SCORES")
        if not cfg.TEST.OOD_SCORES:
            print(f"{why}: it is left out")
    for each in found:
        if each.shared:
            some = ", ".join([*each.shared[:5], *(["..."] if len(each.shared) > 5 else [])])
            what = f"{title(each.cfg)} shares {len(each.shared)} classes with {title(cfg)}"
            print(f"{what}, which count as others: {some}")
    return found


def others_of(name: str, cfg: CfgNode, trainer: Any) -> Others:
    own = cfg.clone()
    own.defrost()
    if name == NEW:
        own.DATASET.SUBSAMPLE_CLASSES = "new"
    else:
        own.DATASET.TITLE, own.DATASET.TEMPLATE, own.DATASET.SUBSAMPLE_CLASSES = "", "", "all"
        own.merge_from_file(str(CONFIGS / f"datasets/{name}.yaml"))
        own.INPUT = cfg.INPUT
    own.DATASET.NUM_SHOTS, own.DATASET.FEWSHOT_FILE = -1, ""  # draws no random numbers
    own.DATASET.HOLD_OUT = False  # which needs two training images of each class
    dataset = DATASET_REGISTRY.get(own.DATASET.NAME)(own)

    def plain(name: str) -> str:
        return name.replace("_", " ").casefold().strip()

    known = set(map(plain, trainer.dm.dataset.classnames))
    return Others(name, own, dataset.test, [each for each in dataset.classnames if plain(each) in known])


class Detection:
    """Scores of out-of-distribution images (TEST.OOD): an observer (`run.OBSERVERS`)."""

    def __init__(self, spec: Any, trainer: Any):
        self.cfg = spec.cfg
        self.trainer = trainer
        self.others: list[Others] = []
        if not spec.cfg.TEST.OOD:
            return
        self.others = read_others(spec.cfg, trainer)
        asked = spec.cfg.TEST.OOD_SCORES or SCORES
        self.local = "GL-MCM" in asked and has_local_logits(getattr(trainer, "model", None))
        self.names = [score for score in SCORES if score in asked and (self.local or score != "GL-MCM")]
        self.known: list[dict[str, Tensor]] = []  # the scores of the tested images, batch by batch
        if not self.local or type(trainer).test_outputs is PromptTrainer.test_outputs:
            self.test_outputs = trainer.test_outputs
            trainer.read_outputs_by(self.watched_outputs)

    def watched_outputs(self, loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """As `test_outputs` of the trainer, and keeps the scores: no image is computed twice."""
        self.known = []
        watched = outputs(self.trainer, loader) if self.local else ((*pair, None) for pair in self.test_outputs(loader))
        for logits, labels, of_patches in watched:
            self.known.append(scores(logits, of_patches, self.cfg.TEST.OOD_T))
            yield logits, labels

    def finish(self) -> dict[str, Any]:
        """How well each score tells the images of the test from others; printed, too.

        Returns:
            `ood`: for each dataset the record of its images, `name`, `shared_classes`, and `scores`: {score: AUROC,
            AUPR and FPR95 in percent, images of the classes positive}.
        """
        cfg, trainer = self.cfg, self.trainer
        if not self.others or not trainer.evaluator.batches:  # nothing to do, or TEST.NO_TEST
            return {}
        trainer.set_model_mode("eval")
        split, _ = tested_images(cfg, trainer)
        loader = trainer.val_loader if split == "val" else trainer.test_loader
        known = self.joined(self.known or self.scores_of(loader))
        records = []
        for each in self.others:
            dataset = type(loader.dataset)(cfg, each.images, transform=loader.dataset.transform)
            same = ("batch_size", "num_workers", "collate_fn", "worker_init_fn")
            others = DataLoader(dataset, **{name: getattr(loader, name) for name in same})
            unknown = self.joined(self.scores_of(others))
            detected = {score: detection(known[score], unknown[score]) for score in self.names}
            print(f"=> {title(each.cfg)}{' (new classes)' if each.name == NEW else ''}: {len(each.images):,} images")
            for score, values in detected.items():
                print(f"* {score}: AUROC {values['auroc']:.2f}, AUPR {values['aupr']:.2f}, FPR95 {values['fpr95']:.2f}")
            record = list_facts(each.cfg, title(each.cfg), "test", each.images)
            records.append({"name": each.name, **record, "shared_classes": each.shared, "scores": detected})
        return {"ood": records}

    def scores_of(self, loader: Any) -> list[dict[str, Tensor]]:
        """The scores of a loader's images, batch by batch."""
        computed = outputs(self.trainer, loader, self.local)
        return [scores(logits, of_patches, self.cfg.TEST.OOD_T) for logits, _, of_patches in computed]

    def joined(self, batches: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
        return {score: torch.cat([batch[score] for batch in batches]).cpu().numpy() for score in self.names}


@torch.no_grad()
def outputs(trainer: Any, loader: Any, local: bool = True) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """The logits (batch, classes) and labels of a loader's images and, if `local`, the logits of their patches."""
    one_pass = getattr(type(trainer), "model_inference", None) is PromptTrainer.model_inference
    for batch in loader:
        images, labels = trainer.parse_batch_test(batch)
        if not local:
            yield trainer.model_inference(images), labels, None
            continue
        with trainer.model.reading("local"):  # features of single patches
            output = trainer.model.output(images)
        logits = output.logits if one_pass else trainer.model_inference(images)
        yield logits, labels, local_logits(trainer.model, output)


def scores(logits: Tensor, of_patches: Tensor | None = None, temperature: float = 1.0) -> dict[str, Tensor]:
    """The scores (batch,) of images, in double precision.

    `logits` are (batch, classes); `of_patches`, (batch, patches, classes), are needed for GL-MCM alone.
    """
    z = logits.double()
    mcm = (z / COSINES / temperature).softmax(dim=-1).amax(dim=-1)
    p = (z / temperature).softmax(dim=-1)
    found = {
        "MCM": mcm,
        "MaxLogit": z.amax(dim=-1),
        "Energy": temperature * (z / temperature).logsumexp(dim=-1),
        "Entropy": -torch.special.entr(p).sum(dim=-1),  # also for a class that a logit of minus infinity leaves out
    }
    if of_patches is not None:
        of_patches = (of_patches.double() / COSINES / temperature).softmax(dim=-1)
        found["GL-MCM"] = mcm + of_patches.amax(dim=(1, 2))
    return found
