"""The images of a folder, answered together by a transductive method."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import trainers
from common.errors import UsageError, check_name
from common.names import with_spaces
from trainers.base import TEMPLATE
from trainers.base.method import Classes
from trainers.base.prompted import normalize
from trainers.base.trainer import assemble_model

from .batches import AnswerRow, read_batch
from .classifier import ON_GPU, PromptedClassifier
from .description import predicting_configuration
from .images import in_threads
from .load import Model
from .options import LoadOptions, PredictOptions
from .predictions import Predictions

ZEROSHOT = "ZeroshotCLIP"


class Together:
    """A transductive method over the answers of one model, or over zero-shot CLIP.

    Args:
        models: one.
        options: with the name of the method.

    Attributes:
        model: that model, under the name of both, such as `TransCLIP+CoOp`.
        learned: whether its answers are the prior, instead of zero-shot CLIP's.

    Raises:
        UsageError: there is no such method, there are several models, or the answers cannot be the
            prior.
    """

    def __init__(self, models: Sequence[Model], options: PredictOptions):
        name = options.transductive
        known = {key: kind for key, kind in trainers.methods().items() if kind.is_transductive}
        check_name(name, known, "method for --transductive")
        if len(models) > 1:
            raise UsageError("--transductive answers over one model", "leave out the others")
        ((base, classifier),) = models
        kind: Any = known[name]
        self.learned = classifier.method != ZEROSHOT
        if self.learned:
            own = trainers.predicting()[classifier.method]
            kind.check_base(own, classifier.source, "give another model")
        self.model = Model(f"{name}+{base}" if self.learned else name, classifier)
        self.options = options
        names = options.class_names or classifier.class_names
        self.method = method_for(kind, classifier, names)

    @torch.no_grad()
    def read(self, files: Sequence[Path]) -> tuple[list[str], Tensor, Tensor]:
        """Of each file why it has no image, or an empty text; of the others the unit features
        (images, joint), and the prior (images, classes), empty if it is not the model's.
        """
        classifier = self.model.classifier
        faults, inputs = read_batch(files, [classifier])
        pixels = inputs[0] if inputs else classifier.pixels([])
        with ON_GPU if classifier.on_gpu else nullcontext():
            features = self.method.model.image_features(pixels.to(classifier.device))
        prior = features[:0]
        if self.learned:
            prior = classifier.logits(pixels, self.options.class_names).softmax(dim=1)
        return faults, normalize(features.float()), prior

    def predict_files(self, files: Sequence[Path]) -> Iterator[list[AnswerRow]]:
        """The rows of all images, as of `batches.predict_files`; `together` in each is how many
        images were answered together.

        Raises:
            UsageError: the method needs more images.
        """
        on_gpu = self.model.classifier.on_gpu
        parts = in_threads(self.read, files, self.options.batch_size, on_gpu)
        faults, features, priors = zip(*parts, strict=True)
        found = torch.cat(features)
        prior = torch.cat(priors).to(found.device) if self.learned else None
        answers = iter(self.answers(found, prior))
        facts = {"model": self.model.name, "together": len(found)}
        yield [
            {"image": str(file)} | ({"error": fault} if fault else facts | next(answers))
            for file, fault in zip(files, chain(*faults), strict=True)
        ]

    def answers(self, found: Tensor, prior: Tensor | None) -> list[AnswerRow]:
        """The most probable classes of each image; UsageError for fewer images than the method
        needs.
        """
        name = self.model.name
        least = self.method.least_images
        if len(found) < least:
            fault = f"{name} answers for at least {least} images together"
            raise UsageError(f"{fault}, and {len(found)} could be read", "give more images")
        with torch.no_grad():
            logits = self.method.answers(found, prior).cpu()
        print(
            f"{name} answered {len(found):,} images together: beside other images, an image may "
            "have another answer"
        )
        return Predictions(self.method.class_names, logits, source=name).answers(self.options.topk)


def method_for(kind: Any, classifier: PromptedClassifier, class_names: Sequence[str]) -> Any:
    """A transductive method with its defaults, on the backbone and the texts of a classifier."""
    of = classifier.description
    settings = {"PREC": "fp32"}
    description = replace(of, method=kind.__name__, settings=settings)
    options = LoadOptions(backbone=classifier.backbone)
    template = of.template or of.dataset_template or TEMPLATE
    classes = Classes(list(with_spaces(class_names)), template, of.sentences)
    method = kind(predicting_configuration(description, options), classes, classifier.device)
    assemble_model(method, clip=classifier.clip)
    method.model.eval()
    return method
