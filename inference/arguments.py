"""The options of all commands that take models. Nothing here waits for torch, unless --plugin is
given.
"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UsageError
from common.names import check_names
from common.start import at_least, of_project, path, required_packages, share
from common.text import lines_of, read_text

if TYPE_CHECKING:
    from .options import LoadOptions

MODELS = (
    "A MODEL is the output folder of a finished run or a checkpoint in it, a folder that "
    "tools/export.py or PEFT wrote, or a "
    "published checkpoint (its file or its run's folder), which needs --config-file and --classes."
)
CHECKPOINTS = "model*.pth.tar*"


class Plugin(argparse.Action):
    """Runs the file of `--plugin`, so that its methods are there before anything asks for them."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, file: Any, *_: Any
    ) -> None:
        with required_packages():
            # Which also registers the methods of the project
            from trainers.base.plugin import load_method_file
        load_method_file(file)
        namespace.plugin = [*(namespace.plugin or []), file]


def add_plugin_option(parser: argparse.ArgumentParser) -> None:
    """Add `--plugin`."""
    text = (
        "Python file that registers methods (docs/add_a_method.md): it is run; may be given "
        "several times"
    )
    parser.add_argument("--plugin", type=path, action=Plugin, metavar="FILE", help=text)


def add_model_options(parser: argparse.ArgumentParser, device: str | None = None) -> None:
    """Add the options. `device` is where the command computes; None lets the user choose."""
    add = parser.add_argument
    parser.set_defaults(device=device)
    if device is None:
        add("--device", default="", help="cpu or cuda (default: cuda if there is a GPU)")
    text = "ViT-B/16, small, a weight file, ... (default: the model's own)"
    add("--backbone", default="", help=text)
    text = "YAML file of the method, for a published checkpoint"
    add("--config-file", type=of_project, default="", help=text)
    text = "method of a published checkpoint (default: the name of the YAML file's folder)"
    add("--trainer", dest="method", default="", help=text)
    text = "the epoch to load (default: the best, else the newest)"
    add("--load-epoch", dest="epoch", type=int, metavar="EPOCH", help=text)
    names = parser.add_mutually_exclusive_group()
    text = "class names instead of the model's"
    names.add_argument("--classes", nargs="+", default=[], metavar="NAME", help=text)
    text = "text file with one class name on each line"
    names.add_argument("--classes-file", type=path, metavar="FILE", help=text)
    text = "sentence for zero-shot CLIP or a published checkpoint, {} is the class name"
    add("--template", default="", help=text)
    text = "JSON file with sentences for each class, for zero-shot CLIP or a published checkpoint"
    add("--sentences", type=path, metavar="FILE", help=text)
    add_plugin_option(parser)


def load_options(args: argparse.Namespace, calibration: bool | None = None) -> "LoadOptions":
    """The values of `add_model_options` and `add_image_options`; errors are those of
    `given_class_names`.
    """
    from .options import LoadOptions

    keys = [item.name for item in fields(LoadOptions)]
    pairs = vars(args).items()
    given = {key: value for key, value in pairs if key in keys and value is not None}
    names = given_class_names(args)
    return LoadOptions(**given, class_names=names, calibration=calibration)


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that read images of the user."""
    text = "refuse larger images (default: 89,478,485, or INPUT.MAX_PIXELS of the run)"
    parser.add_argument("--max-pixels", type=at_least(1, 10**9), metavar="N", help=text)


def add_calibration_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of models that tools/calibrate.py has fitted."""
    text = "say unknown where the model is too unsure for the error that was asked for"
    parser.add_argument(
        "--unknown", action="store_true", help=f"{text} (a model of tools/calibrate.py)"
    )
    text = (
        "a set of classes for each image, with the right one in it for this share of the "
        "images: 90, 90%% or 0.9"
    )
    parser.add_argument("--sets", type=share, metavar="SHARE", help=text)


def given_class_names(args: argparse.Namespace) -> list[str]:
    """The names of --classes or --classes-file; empty if neither is given.

    Raises:
        UsageError: there is one name alone, a name is empty or given twice, or the file is missing,
            empty, too large, or not text.
    """
    file = args.classes_file
    names = args.classes
    if file is not None:
        names = lines_of(read_text(file))
        if not names:
            raise UsageError(f"{file} has no class names", "give one on each line", file)
    if len(names) == 1:
        raise UsageError("a single class name has the probability 100%", "give two or more")
    return check_names(names) if names else []


def check_exists(model: Path, expected: str = "model") -> None:
    """Raise UsageError if there is nothing at the path of a model."""
    if not model.exists():
        of_run = "give a folder of fit.py or export.py, or the output folder of a run"
        remedy = of_run if expected == "model" else "check the path"
        raise UsageError(f"no {expected} at {model}", remedy, model)
