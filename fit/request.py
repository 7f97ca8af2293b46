"""The request of a fit."""

from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from common.errors import UsageError, check_name

PRIORS = "folder", "equal"
COVERAGES = "images", "class"
GROUPS = "auto", "none"


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The options of a fit that fit.json keeps; the help of `tools/fit.py` explains them.

    Attributes:
        max_ms: most milliseconds of the image tower for an image; None for any.
        minutes: for everything; 0 for heads alone, without a limit.
        max_error: percent of the answers that may be wrong; None for no promise.
        groups: `auto` or `none`.
        prior: how frequent the classes are in new images, one of PRIORS.
        coverage_by: whether sets cover a share of all images, or of those of each class.
        methods: to try besides zero-shot CLIP; empty for all.

    Raises UsageError for another value of groups, prior or coverage_by, and for another number
    than 0 or more.
    """

    max_ms: float | None = None
    minutes: float = 5.0
    max_error: float | None = None
    groups: str = "auto"
    prior: str = PRIORS[0]
    coverage_by: str = COVERAGES[0]
    methods: tuple[str, ...] = ()
    seed: int = 1

    def __post_init__(self) -> None:
        check_name(self.groups, GROUPS, "value of groups")
        check_name(self.prior, PRIORS, "value of prior")
        check_name(self.coverage_by, COVERAGES, "value of coverage_by")
        for name in ("minutes", "max_error", "max_ms"):
            value = getattr(self, name)
            if value is None and name != "minutes":
                continue
            if not isinstance(value, Real) or not float(value) >= 0:  # also NaN
                raise UsageError(f"{name} is {value!r}", "give a number, 0 or more")
        if self.max_error and self.max_error >= 100:
            raise UsageError(f"max_error is {self.max_error}", "give a percentage below 100")


@dataclass(frozen=True)
class FitRequest(FitOptions):
    """All options of `tools/fit.py`.

    Attributes:
        images: folder of class folders, a CSV file, or a bank, with `labels` or class folders.
        to: folder for the model.
        backbone: the only one, or the first to choose among.
        others: more backbones to choose among.
        replace: whether a fit of other images may be replaced.
    """

    images: Path
    to: Path
    backbone: str = "ViT-B/16"
    others: tuple[str, ...] = ()
    device: str = ""
    sentences: Path | None = None
    test: Path | None = None
    group_by: str = ""
    labels: Path | None = None
    replace: bool = False

    @property
    def backbones(self) -> tuple[str, ...]:
        """All that are named."""
        return self.backbone, *self.others
