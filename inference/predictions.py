"""Predictions: the answers of a model for images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from common.errors import UsageError
from common.names import with_spaces

from .calibrated import Calibration

Pairs = list[tuple[str, float]]  # (class, probability), the most probable first


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers of a model for images, with the names of the classes.

    Attributes:
        class_names: in the order of the logits.
        logits: (images, classes), fp32, on the CPU: as the model computes them.
        calibration: what was fitted for the model, if anything.
        source: the model, for errors.
    """

    class_names: Sequence[str]
    logits: Tensor
    calibration: Calibration | None = None
    source: str = "the model"

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, images: slice) -> "Predictions":
        return replace(self, logits=self.logits[images])

    def joined(self, others: Sequence["Predictions"]) -> "Predictions":
        """The same of these images and then of others."""
        logits = torch.cat([part.logits for part in (self, *others)])
        return replace(self, logits=logits)

    @cached_property
    def probabilities(self) -> Tensor:
        """(images, classes), fp32: after the temperature of the calibration, which changes no
        predicted class.
        """
        if self.calibration is None or not len(self):
            return self.logits.softmax(dim=-1)
        repaired = self.calibration.temperature.apply(self.logits)
        return torch.from_numpy(repaired).float().softmax(dim=-1)

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image."""
        return [self.class_names[index] for index in self.logits.argmax(dim=-1).tolist()]

    def top(self, k: int) -> list[Pairs]:
        """The `k` most probable classes of each image; all of them, if there are fewer."""
        found = self.probabilities.topk(min(k, len(self.class_names)))
        rows = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        return [self._named(indices, values) for indices, values in rows]

    @property
    def unknown(self) -> Tensor:
        """(images,): whether the model had better not answer, as too many such answers would be
        wrong.

        Raises:
            UsageError: there is no calibration, it promises no error, or it is of other class
                names.
        """
        threshold = self.calibration_for(unknown=True).threshold
        assert threshold is not None
        return torch.from_numpy(~threshold.apply(self.logits))

    def sets(self, coverage: float) -> list[Pairs]:
        """For each image the classes of a set that has the right one for the share `coverage` of
        the images, between 0 and 1.

        Raises:
            UsageError: as for `unknown`, or there were too few images for this coverage.
        """
        fitted = self.calibration_for(coverage=coverage).sets
        if not len(self):
            return []
        inside = fitted.apply(self.logits, coverage)
        order = self.probabilities.argsort(descending=True, stable=True)
        found = []
        for row, indices, is_inside in zip(self.probabilities, order, inside, strict=True):
            members = indices[torch.from_numpy(is_inside)[indices]]
            found.append(self._named(members.tolist(), row[members].tolist()))
        return found

    def answers(
        self, k: int, unknown: bool = False, coverage: float | None = None
    ) -> list[dict[str, Any]]:
        """For each image, as JSON has it: `top`, and `unknown` and `set`, which are None if they
        are not asked for.
        """
        nothing: list[Any] = [None] * len(self)
        columns = {
            "top": list(map(as_objects, self.top(k))),
            "unknown": self.unknown.tolist() if unknown else nothing,
            "set": nothing if coverage is None else list(map(as_objects, self.sets(coverage))),
        }
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def calibration_for(self, unknown: bool = False, coverage: float | None = None) -> Calibration:
        """The calibration; UsageError if it cannot say which images are `unknown`, or which sets
        cover.
        """
        found = self.calibration
        if found is None:
            fault = f"{self.source} has no calibration"
            raise UsageError(fault, "fit one by tools/calibrate.py", self.source)
        where = f"the calibration of {self.source} on {found}"
        again = "fit it again by tools/calibrate.py"
        if with_spaces(self.class_names) != with_spaces(found.class_names):
            raise UsageError(f"{where} is of other class names", f"leave these out, or {again}")
        if unknown and found.threshold is None:
            remedy = (
                "give --max-error to tools/fit.py, or --error and --images to tools/calibrate.py"
            )
            raise UsageError(f"{where} promises no error", remedy)
        if coverage is not None and math.isinf(found.sets.quantile(coverage)):
            needed = math.ceil(round(coverage / (1 - coverage), 6))
            fault = f"{where} cannot promise sets for {100 * coverage:g}% of the images"
            raise UsageError(fault, f"ask for less, or {again} with at least {needed:,}")
        return found

    def _named(self, indices: Sequence[int], probabilities: Sequence[float]) -> Pairs:
        names = [self.class_names[index] for index in indices]
        return list(zip(names, probabilities, strict=True))


def as_objects(pairs: Pairs) -> list[dict[str, Any]]:
    return [{"class": name, "probability": value} for name, value in pairs]
