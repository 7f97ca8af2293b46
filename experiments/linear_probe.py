"""The command `python tools/linear_probe.py`: a linear probe from 1, 2, 4, 8 and 16 images of each class."""

import argparse
from pathlib import Path

from common.start import add_common_options, at_least

from . import run
from .configs import config_files, known_datasets
from .results import describe, read_results
from .studies.spec import Study, Variant

METHOD = "LinearProbe"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Fit a linear classifier of the frozen image features on a few images of each class, and test it.",
        epilog="Results are where scripts/lpclip/few_shot.sh leaves them, and count for studies. Trailing KEY VALUE "
        "pairs override the YAML file. Run the same command again to resume.",
    )
    parser.add_argument("dataset", choices=known_datasets(), metavar="DATASET", help="a YAML file in configs/datasets/")
    parser.add_argument("seed", type=at_least(0), metavar="SEED", help="chooses the few-shot images")
    parser.add_argument("--shots", type=at_least(1), nargs="+", default=[1, 2, 4, 8, 16], help="images of each class")
    parser.add_argument("--backbone", default="", help="ViT-B/16, RN50, ..., small, a weight file, or architecture:tag")
    parser.add_argument("--cfg", choices=[file.stem for file in config_files(METHOD)])
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the datasets")
    parser.add_argument("--output", type=Path, default=Path("output"))
    add_common_options(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings to override")
    args = parser.parse_intermixed_args(argv)
    variant, shots = Variant(METHOD, METHOD, args.cfg or ""), tuple(dict.fromkeys(args.shots))
    where = {"backbone": args.backbone, "root": args.root, "output": args.output}
    runs = Study((variant,), (args.dataset,), ("few_shot",), (args.seed,), shots=shots, **where).runs()
    for one in runs:
        run.main([*one.arguments, *args.opts])
    for one in runs:
        if result := read_results(one.folder):
            print(describe(result))
