"""Seconds of a test pass without and with predictions.npz, in turns, and of the predictions of 1,000 classes alone.

    python benchmarks/predictions_time.py --root data --dataset small_land --rounds 5

Zero-shot CLIP with the small backbone, one of the fastest test passes there are: other models take longer for an image.
"""

import sys
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
    parser = measuring.parser(__doc__)
    parser.add_argument("--root", default="data", help="folder of the datasets")
    parser.add_argument("--dataset", default="small_land", help="name of a file in configs/datasets")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with TemporaryDirectory() as folder:
        options = ["--root", args.root, "--trainer", "ZeroshotCLIP", "--backbone", "small", "--output-dir", folder]
        options += ["--dataset-config-file", f"{ROOT}/configs/datasets/{args.dataset}.yaml", "--eval-only"]
        options += ["--config-file", f"{ROOT}/configs/trainers/CoOp/small.yaml", "DATALOADER.NUM_WORKERS", "0"]
        cfg = setup_cfg(parse_arguments(options))
        with redirect_stdout(sys.stderr):
            trainer = build_trainer(cfg)
            evaluator, file = trainer.evaluator, Path(folder, predictions.FILE)

            def test(keeps: bool) -> None:
                trainer.evaluator = predictions.Recorder(evaluator, False, len) if keeps else evaluator
                trainer.test()
                if keeps:
                    predictions.save(file, predictions.of_test(cfg, trainer))

            test(keeps=True)  # fills what is computed once
            passes = {str(keeps): partial(measuring.timed, partial(test, keeps), trainer.device) for keeps in (0, 1)}
            found = measuring.in_turns(passes, args.rounds)
        logits = torch.randn(IMAGES, CLASSES, generator=torch.Generator().manual_seed(1))
        labels = torch.zeros(IMAGES, dtype=torch.long)
        alone = partial(measuring.timed, partial(predictions.predictions_of, logits, labels), torch.device("cpu"))
        seconds, _ = measuring.in_turns({"alone": alone}, args.rounds)["alone"]
        number = len(trainer.test_loader.dataset)
        record = {"images": number, "without (s)": found["0"][0], "with (s)": found["1"][0], "ratio": 1 / found["1"][1]}
        record |= {"bytes": file.stat().st_size, f"ms an image, {CLASSES} classes": 1000 * seconds / IMAGES}
        measuring.show([record], args.json, args.threads)


if __name__ == "__main__":
    main()
