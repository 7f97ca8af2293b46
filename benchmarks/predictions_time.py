"""Seconds of a test pass without and with predictions.npz, in turns, and of the predictions of 1,000 classes alone.

    python benchmarks/predictions_time.py --root data --dataset small_land --rounds 5

Zero-shot CLIP with the small backbone, one of the fastest test passes there are: other models take longer for an image.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__":  # the project instead of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from dassl.engine import build_trainer

from benchmarks import measuring
from common.start import ROOT
from experiments import predictions
from experiments.arguments import parse_arguments
from experiments.configuration import setup_cfg

IMAGES, CLASSES = 2000, 1000


def main(argv: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__, backbone="small")
    parser.add_argument("--root", default="data", help="folder of the datasets")
    parser.add_argument("--dataset", default="small_land", help="name of a file in configs/datasets")
    measuring.run(parser.parse_args(argv), records)


def records(args: Namespace) -> Iterator[dict]:
    with TemporaryDirectory() as folder:
        options = ["--root", args.root, "--trainer", "ZeroshotCLIP", "--backbone", args.backbone]
        options += ["--dataset-config-file", f"{ROOT}/configs/datasets/{args.dataset}.yaml", "--eval-only"]
        options += ["--config-file", f"{ROOT}/configs/trainers/CoOp/small.yaml", "--output-dir", folder]
        cfg = setup_cfg(parse_arguments([*options, "DATALOADER.NUM_WORKERS", "0"]))
        with redirect_stdout(sys.stderr):
            trainer = build_trainer(cfg)
            evaluator, file = trainer.evaluator, Path(folder, predictions.FILE)

            def test(keeps: bool) -> None:
                trainer.evaluate_by(lambda _: predictions.Recorder(evaluator, False, len) if keeps else evaluator)
                trainer.test()
                if keeps:
                    predictions.save(file, predictions.of_test(cfg, trainer))

            test(keeps=True)  # fills what is computed once
            ways = {keeps: partial(measuring.timed, partial(test, keeps), trainer.device) for keeps in (False, True)}
            (without, _), (with_file, ratio) = measuring.in_turns(ways, args.rounds).values()
        logits = torch.randn(IMAGES, CLASSES, generator=torch.Generator().manual_seed(1))
        labels = torch.zeros(IMAGES, dtype=torch.long)
        alone = partial(measuring.timed, partial(predictions.predictions_of, logits, labels), logits.device)
        ((seconds, _),) = measuring.in_turns({"alone": alone}, args.rounds).values()
        record = {"images": len(trainer.test_loader.dataset), "without (s)": without, "with (s)": with_file}
        record |= {"ratio": 1 / ratio, "bytes": file.stat().st_size}
        yield record | {f"ms an image, {CLASSES} classes": 1000 * seconds / IMAGES}


if __name__ == "__main__":
    main()
