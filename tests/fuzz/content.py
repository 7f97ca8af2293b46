"""Cases of files whose content changed under their names: backbones of finished runs, and caches."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from dassl.utils import load_checkpoint

from .cases import Case, kind, sometimes_special
from .changes import change_bytes
from .corpus import BASE, METHODS, OTHERS, run_files, train
from .images import pictures
from .weights import changed_safetensors, content, only, saved

CACHE, TEACHERS = "cache", "modular-prompt-learning"  # folders of a case
CACHES = ("CACHE", CACHE, "DATALOADER.CACHE_TEST", True)


@kind("replaced backbone", share=4)
def replaced_backbone(rng: Random) -> Case:
    """A run that resumes, is tested or predicts with a weight file that had other weights; or a new run."""
    state = torch.load(io.BytesIO(content("tiny.pt")), weights_only=True)
    how = rng.choice(("same", "perturbed", "one tensor", "huge"))
    for key in rng.sample(sorted(state), len(state) if how == "perturbed" else 1) if how != "same" else ():
        number = rng.choice((1e20, 1e38, -1e38))  # their squares are infinite
        state[key] = torch.full(state[key].shape, number) if how == "huge" else state[key] + 0.01
    method = rng.choice(list(METHODS))
    if rng.random() < 0.4:  # without a run before: the logits may be infinite or NaN
        options = ["--backbone", "weights.pt"]
        case = Case("train", train(rng.choice([*METHODS, *OTHERS]), options=options), {"weights.pt": saved(state)})
        case.argv += ["OPTIM.MAX_EPOCH", "1"]
        return case
    case = Case("train", [], run_files(method))
    case.files["weights.pt"] = saved(state) if how != "same" else content("tiny.pt")
    for name in ("config.yaml", "results.json"):  # as if the backbone had this name then
        text = Path(BASE, "runs", method, name).read_text().replace(f"{BASE}/tiny.pt", "weights.pt")
        case.files[f"run/{name}"] = text.encode()
    use, options = rng.randrange(5), ["--backbone", "weights.pt"]
    if use == 0:
        case.argv = train(method, options=[*options, "--eval-only", "--model-dir", "run"])
    elif use < 3:
        case.argv = train(method, output="run", options=[*options, *(["--skip-finished"] * (use == 1))])
    else:
        case.program, case.argv = ("predict", "export")[use - 3], ["run", *options]
        case.argv += ["image.png"] if use == 3 else ["--to", "exported"]
        case.files["image.png"] = pictures()["0 PNG"]
    if how != "same":
        case.check = lambda: "other weights are accepted"
    return case


# Caches


def other_results(method: str, folder: str) -> str:
    """The fault of a run with changed caches: it has other results than the one with the valid ones."""
    keys = ("accuracy", "macro_f1", "n_test")
    one, other = (json.loads(Path(place, "results.json").read_text()) for place in (f"{BASE}/{folder}", "out"))
    if [one[key] for key in keys] != [other[key] for key in keys]:
        return "a changed cache gives another result, and nothing says so"
    for file in Path("out").glob("*/model.pth.tar-2"):
        before, after = (load_checkpoint(str(path))["state_dict"] for path in (only(f"runs/{method}"), file))
        if not all(torch.equal(before[key], after[key]) for key in before):
            return "a changed cache gives other prompts, and nothing says so"
    return ""


@kind("cache", share=3)
def cache(rng: Random) -> Case:
    """Of image features, decoded images or a teacher's text features."""
    teaches = rng.random() < 0.4
    place = TEACHERS if teaches else CACHE
    files: dict[str, bytes | str] = {f"{place}/{path.name}": path.read_bytes() for path in Path(BASE, place).iterdir()}
    name = rng.choice(sorted(files))
    files[name] = changed_cache(rng, files[name], [data for data in files.values() if isinstance(data, bytes)])
    if teaches:
        check: Callable[[], str] = lambda: other_results("KgCoOp", "runs/KgCoOp")  # noqa: E731
        return Case("train", train("KgCoOp"), files, check=check)
    options = ["--eval-only", "--model-dir", f"{BASE}/runs/CoOp"]
    return Case("train", train("CoOp", *CACHES, options=options), files, check=lambda: other_results("CoOp", "cached"))


def changed_cache(rng: Random, before: bytes, others: list[bytes]) -> bytes | str:
    """The content of another file, other numbers in the same form, or damage."""
    how = rng.random()
    if how < 0.15:
        return rng.choice(others)
    if how < 0.5:
        place = rng.randrange(len(before) // 2, len(before))
        return before[:place] + rng.randbytes(len(before[place:]))
    data = changed_safetensors(rng, before) if before[8:9] == b"{" and how < 0.75 else change_bytes(rng, before)
    return sometimes_special(rng, data)
