"""Cases of settings on the command line."""

from functools import cache
from random import Random
from typing import Any

from dassl.config import get_cfg_default

from experiments.configuration import extend_cfg, flatten

from .cases import Case, kind
from .changes import NAMES, NUMBERS
from .corpus import METHODS, OTHERS, train

LENGTHY = {"OPTIM.MAX_EPOCH", "OPTIM.WARMUP_EPOCH", "DATALOADER.NUM_WORKERS", "DATALOADER.K_TRANSFORMS"}
OWN_FILES = {"OUTPUT_DIR", "RESUME"}  # the user's choice where to write


@cache
def settings(method: str) -> dict[str, Any]:
    cfg = get_cfg_default()
    extend_cfg(cfg, method)
    own = f"TRAINER.{method.upper()}."
    return {key: item for key, item in flatten(cfg).items() if key.startswith(own) or not key.startswith("TRAINER.")}


def setting(rng: Random, key: str, default: Any, trains: bool) -> str:
    """A text for a setting: of its kind or another, in its range or not."""
    numbers = [number for number in NUMBERS if not (trains and key in LENGTHY and number > 7)]
    names = [name for name in NAMES if "\0" not in name and not (key in OWN_FILES and ("/" in name or name == ".."))]
    number, wrong = rng.choice(numbers), rng.random() < 0.25
    if isinstance(default, bool) and not wrong:
        return str(rng.choice((True, False)))
    if isinstance(default, int) and not wrong:
        return str(int(number) if number == number and abs(number) != float("inf") else -2)
    if isinstance(default, float) and not wrong:
        return str(float(number))
    if isinstance(default, list | tuple) and not wrong:
        return str([type(item)(0) if rng.random() < 0.2 else item if rng.random() < 0.5 else rng.choice(numbers)
                    for item in [*default, 1][: rng.choice((1, 2, 3, 4))]])  # fmt: skip
    if trains and key in LENGTHY:
        return rng.choice(("0", "-1", "1", "2", "None", "[]", "x"))
    wrong_kinds = ("None", "[]", "()", "{}", "[[1]]", "True", "1.5", "[" * 3000 + "1" + "]" * 3000)
    return rng.choice((rng.choice(names), str(number), *wrong_kinds))


@kind("settings", share=10)
def pairs(rng: Random) -> Case:
    """KEY VALUE pairs and a few options; a third of the runs train."""
    method = rng.choice([*METHODS, *OTHERS])
    trains, known = rng.random() < 0.35, settings(method)
    chosen = rng.sample(sorted(known), rng.choice((1, 1, 1, 2, 3)))
    if rng.random() < 0.3:  # those of the method and the optimiser have most meaning
        chosen[0] = rng.choice([key for key in known if key.startswith(("TRAINER.", "OPTIM.", "DATALOADER."))])
    items = [item for key in dict.fromkeys(chosen) for item in (key, setting(rng, key, known[key], trains))]
    if rng.random() < 0.03:
        items.insert(rng.randrange(len(items) + 1), rng.choice((*NAMES[:5], "--debug", "X.Y", "OPTIM", "OPTIM.LR.X")))
    options = [] if trains else ["--no-train"]
    if rng.random() < 0.1:
        given = "seed", "load-epoch", "backbone", "config-file", "resume", "model-dir", "transforms"
        names = [name for name in NAMES if "\0" not in name]
        options += [f"--{rng.choice(given)}", rng.choice([*names, str(2**33), "-5", "x"])]
    return Case("train", train(method, *items, options=options))
