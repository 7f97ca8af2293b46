"""The command `python tools/calibrate.py`: fit calibrations of models, and report what they
change.
"""

import argparse

from common.results import CALIBRATION
from common.start import Parser, path, percent, required_packages

from .arguments import add_plugin_option
from .sets import KINDS


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        description="Fit the temperature, the threshold for unknown images and the sets of a model "
        f"on held-out images, write them to {CALIBRATION} in its folder, and report ECE, NLL, sets "
        "and abstention before and after.",
        epilog="A MODEL is the output folder of a run, a folder with such folders below it, or a "
        "folder that tools/export.py wrote. The images are the validation images of a run or, with "
        "--images, those in folders named after the classes. Images that the model has learned "
        "from, near-copies of them, and test images are refused.",
    )
    add = parser.add_argument
    add("models", type=path, nargs="+", metavar="MODEL")
    words = "labelled images instead of the validation images: CLASS/*, or a bank of them"
    add("--images", type=path, metavar="FOLDER", help=words)
    words = "at most so many answers are wrong: 5, 5%% or 0.05 (default: 5, if promised)"
    add("--error", type=percent, metavar="PERCENT", help=words)
    add("--kind", choices=KINDS, default=KINDS[0], help="score of the sets (default: lac)")
    words = "also print the coverage and the size of the sets of each class"
    add("--by-class", action="store_true", help=words)
    words = "also read images of the test, and mark the results"
    add("--accept-test-images", action="store_true", help=words)
    words = (
        "read images for a model that does not say which it has learned from; this marks a "
        "calibration"
    )
    add("--accept-unknown-images", action="store_true", help=words)
    add("--device", default="", help="cpu or cuda (default: cuda if there is a GPU)")
    words = "weight file, if a model was learned on one of another machine"
    add("--backbone", default="", help=words)
    add_plugin_option(parser)
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with required_packages():
        from .calibrate import calibrate_all  # imports torch, which takes seconds
    calibrate_all(args)
