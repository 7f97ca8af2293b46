"""The options of a fit, each once: the command, `Classifier`, fit.json and the page of options have
their names, defaults, values and help from here.
"""

from dataclasses import MISSING, Field, dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any

from common.errors import UsageError, check_name
from common.start import Parser, any_seed, between, path, percent

PRIORS = "folder", "equal"
COVERAGES = "marginal", "per-class"
OLD_COVERAGES = {"images": COVERAGES[0], "class": COVERAGES[1]}  # words of --coverage-by
GROUPS = "auto", "none"


def option(default: Any, words: str, flag: str = "", below: float = 0.0, **reads: Any) -> Any:
    """A field of an option.

    Args:
        words: its help.
        flag: its word on the command line; by default its name.
        below: numbers of 0 or more, and less than this, are accepted; 0: it has no range.
        reads: how argparse reads it.
    """
    if below:
        reads = {"type": between(-1e-9, below, f"a number from 0 to {below:,.0f}")} | reads
    facts = {"words": words, "flag": flag, "below": below, "reads": reads}
    return field(default=default, metadata=facts)


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The options of a fit that fit.json keeps.

    Raises UsageError for a value that is not accepted.
    """

    max_ms: float | None = option(
        None,
        "leave out backbones whose image tower takes longer for an image on this machine",
        below=1e6,
        metavar="MS",
    )
    minutes: float = option(
        5.0, "train prompts and CLIP-LoRA, too, if they end in time; 0: heads alone", below=1e5
    )
    max_error: float | None = option(
        None,
        "answer `unknown` so that at most so many answers are wrong: 5, 5%% or 0.05",
        below=100,
        type=percent,
        metavar="PERCENT",
    )
    groups: str = option(
        GROUPS[0],
        "how to find near-copies, which count once: by names, times and content, or not at all",
        choices=GROUPS,
    )
    prior: str = option(
        PRIORS[0],
        "how frequent the classes are in new images: as in these, or all equally",
        choices=PRIORS,
    )
    coverage: str = option(
        COVERAGES[0],
        "whether sets (`predict --sets`) cover a share of all images, or of those of each class",
        type=lambda text: OLD_COVERAGES.get(text, text),
        choices=COVERAGES,
    )
    methods: tuple[str, ...] = option(
        (), "methods to try besides zero-shot CLIP (default: all)", nargs="+", metavar="NAME"
    )
    seed: int = option(1, "of the folds and of the training", type=any_seed)

    def __post_init__(self) -> None:
        for one in fields(self):
            check_option(one, getattr(self, one.name))


@dataclass(frozen=True, kw_only=True)
class FitRequest(FitOptions):
    """All options of `tools/fit.py`."""

    images: Path = option(
        MISSING,
        "folder of class folders, a CSV file or a folder of features",
        "images",
        type=path,
        nargs="?",
        metavar="IMAGES",
    )
    to: Path = option(
        MISSING,
        "folder for the model: new, or of an earlier call",
        type=path,
        required=True,
        metavar="MODEL",
    )
    backbones: tuple[str, ...] = option(
        ("ViT-B/16",),
        "ViT-B/16, small, a weight file, ..., or several to choose among",
        "--backbone",
        nargs="+",
        metavar="NAME",
    )
    device: str = option("", "cpu or cuda (default: cuda if there is a GPU)")
    sentences: Path | None = option(
        None, "JSON file with sentences for each class", type=path, metavar="FILE"
    )
    test: Path | None = option(
        None,
        "test images in class folders, or a CSV file; nothing is chosen on them",
        type=path,
        metavar="DIR",
    )
    group_by: str = option(
        "",
        "name the groups by the folder below that of the class, or by the capture of REGEX in the "
        "path",
        metavar="folder|REGEX",
    )
    labels: Path | None = option(
        None,
        "CSV file with path and label, for features of images without a class folder",
        type=path,
        metavar="FILE",
    )
    replace: bool = option(False, "replace the model of a fit of other images", action="store_true")

    @property
    def backbone(self) -> str:
        """The only one, or the first to choose among."""
        return self.backbones[0]


def check_option(one: Field[Any], value: Any) -> None:
    """Raise UsageError for a value that an option does not accept."""
    choices = one.metadata["reads"].get("choices")
    if choices:
        check_name(value, choices, f"value of {one.name}")
    below = one.metadata["below"]
    if not below or value is one.default is None:
        return
    if not isinstance(value, Real) or not 0 <= float(value) < below:  # also NaN
        raise UsageError(f"{one.name} is {value!r}", f"give a number from 0 to below {below:,.0f}")


def options_of_fit() -> list[Field[Any]]:
    """All options, in the order of the help."""
    return sorted(fields(FitRequest), key=lambda one: one.name in FitOptions.__dataclass_fields__)


def flag_of(one: Field[Any]) -> str:
    """The word of an option on the command line."""
    return one.metadata["flag"] or "--" + one.name.replace("_", "-")


def help_of(one: Field[Any]) -> str:
    """The help of an option, with its default."""
    words: str = one.metadata["words"]
    if one.default is MISSING or not one.default:
        return words
    values = one.default if isinstance(one.default, tuple) else [one.default]
    return f"{words} (default: {' '.join(map(str, values))})"


def add_options(parser: Parser) -> None:
    """Add all options to those of a command."""
    for one in options_of_fit():
        reads = dict(one.metadata["reads"])
        if one.default is not MISSING:
            reads["default"] = one.default
        flag = flag_of(one)
        if flag.startswith("-"):
            reads["dest"] = one.name
        parser.add_argument(flag, help=help_of(one), **reads)
