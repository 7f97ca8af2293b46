"""Images per second of `tools/predict.py`, and of the bare forward pass of open_clip's image tower.

    python benchmarks/predict_time.py --method ZeroshotCLIP MPL --images 100

open_clip's own model, with the same weights, encodes images that are in memory. predict decodes synthetic files of
256 x 256 pixels, transforms, encodes and compares them with the classes, and sorts. They are measured in turns, and the
ratio is the median over the rounds.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__":  # the project instead of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import open_clip
import torch
from PIL import Image

from benchmarks import measuring
from common.start import at_least
from inference.classifier import PromptedClassifier
from inference.images import Predictor
from inference.models import Model, describe
from trainers import methods

PIXELS = 256  # of a side of an image file
BATCH = 100  # predict's default


def main(argv: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--method", nargs="+", default=["ZeroshotCLIP", "MPL"], choices=methods(), metavar="METHOD")
    parser.add_argument("--classes", type=at_least(1), default=5)
    parser.add_argument("--images", type=at_least(1), default=100)
    parser.add_argument("--batch", type=at_least(1), default=20, help="images in a batch of open_clip's pass")
    parser.add_argument("--arch", help="an architecture of open_clip, with random weights")
    measuring.run(parser.parse_args(argv), records)


def records(args: argparse.Namespace) -> Iterator[dict]:
    """A record for open_clip and each method: images per second, and how many times open_clip's."""
    with TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.png") for number in range(args.images)]
        for number, file in enumerate(files):
            pixels = np.random.default_rng(number).integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)
        passes = {"open_clip": bare(args)}
        with redirect_stdout(sys.stderr):
            for method in args.method:
                passes[method] = predicting(classifier(args, method), files)
        for run in passes.values():
            run()  # a warm-up
        timed = {name: partial(measuring.timed, run, measuring.DEVICE) for name, run in passes.items()}
        for name, (seconds, ratio) in measuring.in_turns(timed, args.rounds).items():
            yield {"pass": name, "images_per_s": args.images / seconds, "ratio": ratio}


def bare(args: argparse.Namespace) -> Callable[[], None]:
    """open_clip's `encode_image` of the images, which are on the device already."""
    model, size = measuring.bare_clip(args)
    pixels = torch.randn(args.images, 3, *size, device=measuring.DEVICE)

    @torch.no_grad()
    def encode() -> None:
        for batch in pixels.split(args.batch):
            model.encode_image(batch)

    return encode


def classifier(args: argparse.Namespace, method: str) -> PromptedClassifier:
    """A method with its initial prompts, under the paper's settings."""
    names = open_clip.IMAGENET_CLASSNAMES[: args.classes]
    if method == "ZeroshotCLIP":
        return PromptedClassifier.zero_shot(args.backbone, names)
    cfg = measuring.build(method, args.classes, args.backbone, batch=1).cfg
    description = describe(cfg, {"metadata": {"class_names": names}}, {})
    return PromptedClassifier(description, None, method, args.backbone)


def predicting(classifier: PromptedClassifier, files: list[Path]) -> Callable[[], None]:
    """What `tools/predict.py` does once it has started."""
    predict = Predictor([Model(classifier.method, classifier)], [], 5)

    def run() -> None:
        for _, errors, _ in predict(files, BATCH):
            assert not errors

    return run


if __name__ == "__main__":
    main()
