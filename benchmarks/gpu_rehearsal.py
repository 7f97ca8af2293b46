"""Steps of all methods on a stand-in CUDA device: launches, waits, and how far they are from the CPU's.

    python benchmarks/gpu_rehearsal.py --trainer MPL CoOp --classes 5 50 500 --prec fp32 fp16 amp

No GPU is needed (stand_in/). A launch is an operation of torch on the device: one kernel, seldom more. Their number
does not depend on the width of the model, so the weights are random and narrow, of ViT-B/16's depth. The first step is
left out: later ones find what it has cached. `loss` and `logits` are the largest differences from the same
steps and a test batch in fp32 on the CPU. The exit status is 1 if a method fails.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path

if __name__ == "__main__":  # the project instead of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.stand_in import Counted, stand_in  # before torch

# isort: split

import torch

from benchmarks import measuring
from benchmarks.official import BATCH, random_batch
from common.start import at_least
from trainers.base.settings import PRECISIONS

FAILED: list[str] = []


def steps(
    args: argparse.Namespace, method: str, classes: int, form: str, prec: str, counted: Counted | None = None
) -> dict:
    """The losses of some training steps, the logits of a test batch and, of the last step, what was counted."""
    torch.manual_seed(1)
    trainer = measuring.build(method, classes, args.backbone, form, prec, BATCH, graphs=args.graphs and bool(counted))
    # Small enough for the first step: by default a GradScaler begins with steps that it skips.
    trainer.scaler = torch.amp.GradScaler(trainer.device.type, 128.0, enabled=trainer.scaler.is_enabled())
    losses, found = [], {}
    for trainer.batch_idx in range(6 if args.graphs else 2):
        batch = random_batch(classes, bool(counted), trainer.batch_idx)
        if counted:
            counted.reset()
        losses.append(trainer.forward_backward(batch)["loss"])
    if counted:
        found = {"launches": counted.launches.total(), "waits": counted.waits.copy()}
    trainer.set_model_mode("eval")
    logits = trainer.model_inference(random_batch(classes, False)["img"].to(trainer.device)).float().cpu()
    return found | {"losses": [float(loss) for loss in losses], "logits": logits}


def records(args: argparse.Namespace) -> Iterator[dict]:
    """A record of each method, number of classes, form and precision."""
    for method, classes, form in product(args.trainer, args.classes, args.form):
        expected: dict = {}
        for prec in args.prec:
            record = {"method": method, "classes": classes, "form": form, "prec": prec}
            record |= dict.fromkeys(("launches", "waits", "loss", "logits", "note"), "")
            try:
                with redirect_stdout(sys.stderr):
                    expected = expected or steps(args, method, classes, form, "fp32")
                    with stand_in() as counted:
                        found = steps(args, method, classes, form, prec, counted)
                record |= {"launches": found["launches"], "waits": found["waits"].total()}
                record |= {"loss": max(abs(a - b) for a, b in zip(found["losses"], expected["losses"], strict=True))}
                record |= {"logits": (found["logits"] - expected["logits"]).abs().max().item()}
                record |= {"note": ", ".join(found["waits"])}
            except Exception as error:  # noqa: BLE001 - the other methods follow
                FAILED.append(method)
                record |= {"note": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
                if args.debug:
                    raise
            yield record


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    stepped = measuring.learning(through_towers=True)
    parser.add_argument("--trainer", nargs="+", default=stepped, choices=stepped)
    parser.add_argument("--classes", nargs="+", type=at_least(1), default=[50])
    parser.add_argument("--form", nargs="+", default=["fast"], choices=("fast", "plain"), help="of the towers")
    parser.add_argument("--prec", nargs="+", default=["fp32", "fp16", "amp"], choices=PRECISIONS)
    parser.add_argument("--graphs", action="store_true", help="with MODEL.CUDA_GRAPHS, in six steps of other images")
    parser.add_argument("--json", type=Path, help="write the records there as well")
    parser.add_argument("--debug", action="store_true", help="end with the traceback of the first error")
    parser.set_defaults(threads=1, backbone="")
    measuring.run(parser.parse_args(argv), records, measuring.narrow_clip(32))
    if FAILED:
        sys.exit(f"failed: {', '.join(dict.fromkeys(FAILED))}")


if __name__ == "__main__":
    main()
