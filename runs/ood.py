"""Detection of out-of-distribution images, which show none of a run's classes.

For every method whose answer for an image does not depend on other images of the test.

A score is higher for images of the classes. With temperature T (TEST.OOD_T), logits z and p =
softmax(z / T):

- MCM: the largest probability of softmax(z / s / T) with CLIP's scale s, a softmax over cosines
  (Ming et al., NeurIPS 2022)
- GL-MCM: MCM, plus the same over all patches (Miyai et al., IJCV 2025)
- MaxLogit: the largest z
- Energy: T log sum exp(z / T) (Liu et al., NeurIPS 2020)
- Entropy: sum p log p
- NegLabel: the probability of the classes beside words that are unlike them (neglabel.py); only if
  it is asked for
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dassl.data.datasets import DATASET_REGISTRY
from torch import Tensor
from yacs.config import CfgNode

from clip import has_local_features
from common.errors import UsageError, check_name
from common.names import as_clip_reads, title
from configs.files import CONFIGS, known_datasets
from measures.metrics import detection
from trainers import MethodTrainer
from trainers.base import Method
from trainers.base.data_use import list_facts
from trainers.base.features import loader_of
from trainers.base.prompted import local_logits

from .neglabel import NegativeWords, read_words

SCORES = ("MCM", "GL-MCM", "MaxLogit", "Energy", "Entropy")
NEGLABEL = "NegLabel"
NEW = "new"  # instead of a dataset: the new classes of the run's own, which has base classes
SCALE = 100.0  # of logits from cosines, for a trainer of another project


@dataclass(frozen=True)
class OutsideImages:
    """Out-of-distribution images."""

    name: str  # as in TEST.OOD
    cfg: CfgNode  # that its dataset was read with
    images: list
    shared: list[str]  # names of classes of the run that it has, too


def check_settings(cfg: CfgNode) -> None:
    """Check TEST.OOD and TEST.OOD_SCORES: known names, and `new` for base classes only."""
    for name in cfg.TEST.OOD:
        check_name(name, [*known_datasets(), NEW], "dataset for --ood")
        if name == NEW and cfg.DATASET.SUBSAMPLE_CLASSES != "base":
            fault = (
                "--ood new needs base classes, and DATASET.SUBSAMPLE_CLASSES is "
                f"{cfg.DATASET.SUBSAMPLE_CLASSES}"
            )
            raise UsageError(fault, "set it to base, or name a dataset")
    for score in cfg.TEST.OOD_SCORES:
        check_name(score, (*SCORES, NEGLABEL), "score in TEST.OOD_SCORES")
    if cfg.TEST.OOD and NEGLABEL in cfg.TEST.OOD_SCORES:
        read_words(cfg.TEST.OOD_WORDS)


def read_outside_images(cfg: CfgNode, trainer: Any) -> list[OutsideImages]:
    """The images of TEST.OOD. Classes that both sides have are printed; their images are not left
    out.

    Raises UsageError if a dataset is missing, or the model does not have a score of
    TEST.OOD_SCORES.
    """
    if getattr(method_of(trainer), "kind", "") == "transductive":
        fault = (
            f"--ood scores each image alone, and {cfg.TRAINER.NAME} learns from the images of a "
            "test"
        )
        raise UsageError(fault, "leave out --ood")
    datasets = [outside_images(name, cfg, trainer) for name in dict.fromkeys(cfg.TEST.OOD)]
    if NEGLABEL in cfg.TEST.OOD_SCORES and not compares_texts(trainer):
        fault = f"NegLabel compares an image with texts, and {cfg.TRAINER.NAME} does not do that"
        raise UsageError(fault, "leave it out of TEST.OOD_SCORES")
    if not has_patches(trainer):
        why = (
            f"GL-MCM compares patches with texts, and {cfg.TRAINER.NAME} with "
            f"{cfg.MODEL.BACKBONE.NAME} cannot"
        )
        if "GL-MCM" in cfg.TEST.OOD_SCORES:
            raise UsageError(f"{why} do that", "leave it out of TEST.OOD_SCORES")
        if not cfg.TEST.OOD_SCORES:
            print(f"{why}: it is left out")
    for dataset in datasets:
        if names := dataset.shared:
            some = ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])
            fault = f"{title(dataset.cfg)} shares {len(names)} classes with {title(cfg)}"
            print(f"{fault}, which count as out-of-distribution: {some}")
    return datasets


def compares_texts(trainer: Any) -> bool:
    """Whether logits are similarities of one image feature with texts: not those of views, nor of a
    linear probe.
    """
    method = method_of(trainer)
    return method is not None and not method.model.own_logits and method.kind != "test-time"


def method_of(trainer: Any) -> Method | None:
    """The method of a trainer; None for a trainer of another project."""
    return trainer.method if isinstance(trainer, MethodTrainer) else None


def has_patches(trainer: Any) -> bool:
    """Whether patches can be compared with texts, too."""
    return compares_texts(trainer) and has_local_features(trainer.model.clip)


def outside_images(name: str, cfg: CfgNode, trainer: Any) -> OutsideImages:
    other = cfg.clone()
    other.defrost()
    if name == NEW:
        other.DATASET.SUBSAMPLE_CLASSES = "new"
    else:
        other.DATASET.TITLE = ""
        other.DATASET.TEMPLATE = ""
        other.DATASET.SUBSAMPLE_CLASSES = "all"
        other.merge_from_file(str(CONFIGS / f"datasets/{name}.yaml"))
        other.INPUT = cfg.INPUT
    # Draws no random numbers
    other.DATASET.NUM_SHOTS = -1
    other.DATASET.FEWSHOT_FILE = ""
    other.DATASET.SENTENCES = ""
    other.DATASET.HOLD_OUT = False  # which needs two training images of each class
    dataset = DATASET_REGISTRY.get(other.DATASET.NAME)(other)
    names = set(map(as_clip_reads, trainer.dm.dataset.classnames))
    shared = [name for name in dataset.classnames if as_clip_reads(name) in names]
    return OutsideImages(name, other, dataset.test, shared)


class DetectionObserver:
    """Scores of out-of-distribution images (TEST.OOD): an observer (`run.wanted_observers`)."""

    def __init__(self, spec: Any, trainer: Any):
        self.cfg = spec.cfg
        self.trainer = trainer
        self.others = read_outside_images(spec.cfg, trainer)
        asked = spec.cfg.TEST.OOD_SCORES or SCORES
        self.local = "GL-MCM" in asked and has_patches(trainer)
        self.words: NegativeWords | None = None
        if NEGLABEL in asked:
            words = spec.cfg.TEST.OOD_WORDS
            seed = spec.cfg.SEED
            self.words = NegativeWords(trainer.model, trainer.method.class_names, words, seed)
        self.names = [
            score
            for score in (*SCORES, NEGLABEL)
            if score in asked and (self.local or score != "GL-MCM")
        ]
        self.tested: list[dict[str, Tensor]] = []  # the scores of the tested images, batch by batch
        if self.local:
            self.reads: tuple[str, ...] = ("local",)
        elif self.words:
            self.reads = ()
        trainer.observers.append(self)

    def reset(self) -> None:
        self.tested = []

    def process(self, logits: Tensor, labels: Tensor) -> None:
        self.tested.append(self.scores(logits))

    def scores(self, logits: Tensor) -> dict[str, Tensor]:
        """Of the images that the model has just read."""
        temperature = self.cfg.TEST.OOD_T
        method = method_of(self.trainer)
        scale = float(method.model.scale) if method else SCALE
        if not hasattr(self, "reads"):
            return scores(logits, None, temperature, scale)
        model = self.trainer.model
        output = model.last_output
        of_patches = local_logits(model, output) if self.local else None
        found = scores(logits, of_patches, temperature, scale)
        if self.words:
            found[NEGLABEL] = self.words.score(logits, output.image)
        return found

    def finish(self) -> dict[str, Any]:
        """How well each score detects out-of-distribution images; printed, too.

        Returns `ood`: for each dataset the record of its images, `name`, `shared_classes`, and
        `scores`: {score: AUROC, AUPR and FPR95 in percent, images of the classes positive}.
        """
        if not self.trainer.evaluator.batches:  # TEST.NO_TEST
            return {}
        self.trainer.set_model_mode("eval")
        known = self.joined(self.tested)
        return {"ood": [self.detected(outside, known) for outside in self.others]}

    def detected(self, outside: OutsideImages, known: dict[str, np.ndarray]) -> dict[str, Any]:
        """The record of one dataset; `known` are the scores of the tested images."""
        unknown = self.joined(self.scores_of(outside.images))
        detected = {score: detection(known[score], unknown[score]) for score in self.names}
        half = " (new classes)" if outside.name == NEW else ""
        print(f"=> {title(outside.cfg)}{half}: {len(outside.images):,} images")
        for score, values in detected.items():
            words = f"AUROC {values['auroc']:.2f}, AUPR {values['aupr']:.2f}"
            print(f"* {score}: {words}, FPR95 {values['fpr95']:.2f}")
        record = {"name": outside.name}
        record |= list_facts(outside.cfg, title(outside.cfg), "test", outside.images)
        return record | {"shared_classes": outside.shared, "scores": detected}

    @torch.no_grad()
    def scores_of(self, images: list) -> list[dict[str, Tensor]]:
        """The scores of images, batch by batch, which are read as those of the test."""
        trainer = self.trainer
        tested = trainer.val_loader if trainer.test_split == "val" else trainer.test_loader
        batches = []
        with trainer.model.reading(*self.reads) if hasattr(self, "reads") else nullcontext():
            for batch in loader_of(images, tested):
                images, _ = trainer.parse_batch_test(batch)
                batches.append(self.scores(trainer.model_inference(images)))
        return batches

    def joined(self, batches: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
        return {
            score: torch.cat([batch[score] for batch in batches]).cpu().numpy()
            for score in self.names
        }


def scores(
    logits: Tensor,
    of_patches: Tensor | None = None,
    temperature: float = 1.0,
    scale: float = SCALE,
) -> dict[str, Tensor]:
    """The scores (batch,) of images, in double precision.

    `logits` are (batch, classes), cosines times `scale`; `of_patches`, (batch, patches, classes),
    are needed for GL-MCM alone.
    """
    z = logits.double()
    mcm = (z / scale / temperature).softmax(dim=-1).amax(dim=-1)
    p = (z / temperature).softmax(dim=-1)
    results = {
        "MCM": mcm,
        "MaxLogit": z.amax(dim=-1),
        "Energy": temperature * (z / temperature).logsumexp(dim=-1),
        # Also for a class that a logit of minus infinity leaves out
        "Entropy": -torch.special.entr(p).sum(dim=-1),
    }
    if of_patches is not None:
        of_patches = (of_patches.double() / scale / temperature).softmax(dim=-1)
        results["GL-MCM"] = mcm + of_patches.amax(dim=(1, 2))
    return results
