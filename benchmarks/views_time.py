"""Images per second of TPT and ZERO, and of loops that compute what their published code computes for an image.

    python benchmarks/views_time.py --classes 100 --threads 1

The published loops run open_clip's own model with the same weights: all views in one batch through the image tower,
without a gradient, and the sentences of all classes, 77 positions each, through the text tower again for every image
and every step. TPT's then encodes the centre crop once more. Both ways answer for the same views, which are random
numbers in memory, and are measured in turns; `difference` is the largest one between their logits or votes.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the project instead of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import open_clip
import torch
from torch import Tensor

from benchmarks import measuring
from clip import tokenize
from common.start import at_least

CONTEXT = "a photo of a"
LR, WEIGHT_DECAY, SELECTION = 0.005, 0.01, {"TPT": 0.1, "ZERO": 0.3}


class Published:
    """open_clip's CLIP with context vectors, as the published code runs it: views (views, 3, H, W) -> (classes,)."""

    def __init__(self, model: Any, names: list[str]):
        self.model = model
        self.ids = tokenize([f"{CONTEXT} {name}." for name in names], model.context_length).to(measuring.DEVICE)
        self.tokens = self.model.token_embedding(self.ids)  # (classes, 77, width)
        self.start = self.tokens[0, 1 : 1 + len(CONTEXT.split())].clone()

    def images(self, views: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.nn.functional.normalize(self.model.encode_image(views), dim=-1)

    def texts(self, ctx: Tensor) -> Tensor:
        model, end = self.model, 1 + len(ctx)
        x = torch.cat([self.tokens[:, :1], ctx.expand(len(self.ids), -1, -1), self.tokens[:, end:]], dim=1)
        x = model.ln_final(model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask))
        x = x[torch.arange(len(x)), self.ids.argmax(dim=-1)] @ model.text_projection
        return torch.nn.functional.normalize(x, dim=-1)

    def tpt(self, views: Tensor) -> Tensor:
        scale, ctx = self.model.logit_scale.exp(), self.start.clone().requires_grad_()
        optimizer = torch.optim.AdamW([ctx], LR, weight_decay=WEIGHT_DECAY)
        logs = (scale * self.images(views) @ self.texts(ctx).T).log_softmax(dim=1)
        logs = logs[self.confident(logs, SELECTION["TPT"])]
        mean = logs.logsumexp(dim=0) - torch.tensor(float(len(logs))).log()
        (-(mean.exp() * mean).sum()).backward()
        optimizer.step()
        with torch.no_grad():
            return (scale * self.images(views[:1]) @ self.texts(ctx).T)[0]

    @torch.no_grad()
    def zero(self, views: Tensor) -> Tensor:
        cosines = self.images(views) @ self.texts(self.start).T
        order = self.confident((self.model.logit_scale.exp() * cosines).log_softmax(dim=1), SELECTION["ZERO"])
        return (cosines[order] / torch.finfo(cosines.dtype).eps).softmax(dim=1).sum(dim=0)  # ties are not resolved

    @staticmethod
    def confident(logs: Tensor, share: float) -> Tensor:
        """The numbers of the views of least entropy."""
        return (-(logs.exp() * logs).sum(dim=1)).argsort()[: int(len(logs) * share)]


def main(argv: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--method", nargs="+", default=list(SELECTION), choices=SELECTION)
    parser.add_argument("--classes", type=at_least(2), nargs="+", default=[100])
    parser.add_argument("--views", type=at_least(10), default=64)
    parser.add_argument("--arch", help="an architecture of open_clip, with random weights")
    measuring.run(parser.parse_args(argv), records)


def records(args: argparse.Namespace) -> Iterator[dict]:
    """A record for each method and number of classes."""
    model, size = measuring.bare_clip(args)
    torch.manual_seed(0)
    views = torch.randn(args.views, 3, *size).to(measuring.DEVICE)
    for classes, method in product(args.classes, args.method):
        published = Published(model, open_clip.IMAGENET_CLASSNAMES[:classes])
        what = {"method": method, "classes": classes, "views": args.views}
        yield what | compare(args, method, published, views)


def compare(args: argparse.Namespace, method: str, published: Published, views: Tensor) -> dict:
    """Images per second of both ways, and their ratio."""
    with redirect_stdout(sys.stderr):
        trainer = measuring.build(method, len(published.ids), args.backbone)
    trainer.set_model_mode("eval")
    ways: dict[str, Callable[[Tensor], Tensor]] = {"published": getattr(published, method.lower())}
    ways["ours"] = lambda views: trainer.model_inference(views[None])[0]
    found = [way(views) for way in ways.values()]  # a warm-up
    timed = {name: partial(measuring.timed, partial(way, views), trainer.device) for name, way in ways.items()}
    measured = measuring.in_turns(timed, args.rounds)
    speeds = {f"{name}, images/s": 1 / seconds for name, (seconds, _) in measured.items()}
    return speeds | {"ratio": measured["ours"][1], "difference": (found[0] - found[1]).abs().max().item()}


if __name__ == "__main__":
    main()
