"""Send seeded inputs through the project's commands, and count how they end: `make fuzz SEED=1 FUZZ=10000`.

Every input is made from its number and the seed alone, and runs in a process of its own, forked from this one, with a
limit on time and memory and a witness (`witness.py`). A failure is anything but acceptance or an error in one line:
a traceback, a hang, a crash, too much memory, foreign code, a change outside its folder. Every 500 inputs, a line on
stderr says how many are done. `make fuzz SEED=1 ONLY=1234` runs one input and shows its output.
"""

import argparse
import gc
import io
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout, suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import open_clip
import torch

from clip import keep_backbones, load_backbone, tokenize
from common.version import source
from experiments.environment import environment

from . import corpus, downloads, images, models, texts, weights  # noqa: F401 - they register their kinds
from .cases import kind_of, make
from .harness import barren, fuzz, table
from .worker import in_process


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of inputs")
    parser.add_argument("--keep", type=Path, default=Path("output/fuzz"), help="folder for failing inputs")
    args = parser.parse_args()
    keep = args.keep.absolute() / f"seed{args.seed}"
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        scratch = Path(folder)
        set_up(scratch)
        started = time.monotonic()
        counts, failures = fuzz(
            partial(make, args.seed), args.only or range(args.count), scratch, keep, bool(args.only)
        )
    print(table(counts))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{time.monotonic() - started:.0f} seconds ({used.ru_utime + used.ru_stime:.0f} of a core), seed {args.seed}")
    for number, what in failures:
        print(f"make fuzz SEED={args.seed} ONLY={number}  # {kind_of(number)}: {what.strip().splitlines()[-1][:300]}")
    if failures:
        print(f"Failing inputs are in {keep}")
    for kind in barren(counts):
        print(f"None of the inputs of the kind {kind!r} was accepted, not even valid ones")
    return 1 if failures or barren(counts) else 0


def set_up(scratch: Path) -> None:
    """Make the corpus, and import and compute here what every case needs, so that its process has it from the start."""
    torch.set_num_threads(1)
    home = scratch / "home/case"
    home.mkdir(parents=True)
    os.chdir(home)  # as deep as the folder of a case
    modules = scratch / "modules"

    def build() -> None:  # in another process, as one that has trained cannot fork others that train
        corpus.build(scratch / "base", home)
        modules.write_text(json.dumps(sorted(sys.modules)))

    if os.waitpid(in_process(build, scratch / "corpus.log"), 0)[1] or not modules.exists():
        sys.exit((scratch / "corpus.log").read_text())
    for name in json.loads(modules.read_text()):
        with suppress(ImportError):
            import_module(name)
    environment(), source()  # they start processes, once
    tokenize(["a photo"])
    keep_backbones(1)
    load_backbone(str(scratch / "base/tiny.pt"))
    open_clip.add_model_config(scratch / "base/ViT-tiny.json")
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # about objects in checkpoints and twice the same name in archives
        for number in range(100):
            make(0, number)
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
