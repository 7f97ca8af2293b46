"""Cases of files with tensors: checkpoints of this project and the published ones, backbones in all forms, caches."""

import io
import json
import struct
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from dassl.utils import load_checkpoint, save_checkpoint

from .cases import LINKS, SPECIAL, Case, kind, sometimes_special
from .changes import change_bytes, change_tree, hostile
from .corpus import BASE, METHODS, OTHERS, run_files, saved, train
from .images import pictures
from .pickles import CODE, change_zip

EVALUATED = ("--eval-only", "--model-dir", "run")


@cache
def content(file: str) -> bytes:
    return Path(BASE, file).read_bytes()


def only(folder: str) -> Path:
    """The one checkpoint of a run of two epochs in the corpus."""
    (found,) = Path(BASE, folder).glob("*/model.pth.tar-2")
    return found


class Calling:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def tensor(rng: Random, like: torch.Tensor | None = None) -> Any:
    """A tensor, or something that pretends to be one."""
    like = torch.zeros(3, 2) if like is None else like
    number = rng.choice((float("nan"), float("inf"), 1e30, 1e38, 0.0))  # 1e38 is finite, its square is not
    return rng.choice(
        [
            lambda: like.to(rng.choice((torch.int64, torch.bool, torch.complex64, torch.float64, torch.bfloat16))),
            lambda: torch.full_like(like, number, dtype=torch.float32),
            lambda: like.reshape(-1),
            lambda: like[None],
            lambda: like.reshape(-1)[:0],
            lambda: torch.zeros(1).expand(2 ** rng.choice((20, 40, 50)), 1),
            lambda: torch.zeros(1).expand(*like.shape),
            lambda: like.to_sparse(),
            lambda: torch.nn.Parameter(like.float()),
            lambda: torch.quantize_per_tensor(like.float(), 0.1, 0, torch.qint8),
            lambda: torch.empty(like.shape, device="meta"),
            lambda: like.tolist(),
            lambda: like.numpy(),
            lambda: like.numpy().astype(">f4"),
            lambda: torch.FloatStorage(4),
            lambda: torch.Generator(),
            lambda: Calling(exec, "open('../outside/made', 'w')"),
            lambda: Calling(torch.from_file, "../outside/kept", True, 4),
            lambda: Calling(torch.load, f"{BASE}/tiny.pt"),
        ]
    )()


def value(rng: Random) -> Any:
    return hostile(rng) if rng.random() < 0.6 else tensor(rng)


def changed_state(rng: Random, tree: Any) -> Any:
    """A checkpoint or a state dict with changes; half of them concern its tensors."""
    holder = tree.get("state_dict", tree)
    if rng.random() < 0.5 or not isinstance(holder, dict):
        return change_tree(rng, tree, value)
    key = rng.choice(list(holder))
    state = OrderedDict(holder)
    state[key] = tensor(rng, holder[key].float()) if rng.random() < 0.7 else value(rng)
    return {**tree, "state_dict": state} if "state_dict" in tree else state


def as_bytes(rng: Random, tree: Any) -> bytes:
    """The tree in a file: a checkpoint of this project (with its checksum), or torch's own form or its old one."""
    try:
        if isinstance(tree, dict) and rng.random() < 0.6:
            save_checkpoint(tree, ".saving", model_name="file")
            return Path(".saving/file").read_bytes()
        return saved(tree, legacy=rng.random() < 0.3)
    except Exception:  # not everything can be saved: lambdas, numbers of too many digits, nests without an end
        return saved({"state_dict": {}, "epoch": rng.choice((0, -1, None, 2**70))})


def foreign(rng: Random) -> bytes:
    """A file of another kind, or a pickle that is nothing but a call."""
    name = rng.choice(("tiny.pt", "tiny.safetensors", "writing.pt", "legacy.pt", "config.yaml", ""))
    return content(name) if name else b"\x80\x02" + rng.choice(CODE) + b"."


def changed_file(rng: Random, file: Path) -> bytes:
    """A changed copy of a file that torch.save wrote."""
    before, how = file.read_bytes(), rng.random()
    if how < 0.45:
        return as_bytes(rng, changed_state(rng, load_checkpoint(str(file))))
    if how < 0.65 and before[:2] == b"PK":
        return change_zip(rng, before)
    return change_bytes(rng, before) if how < 0.95 else foreign(rng)


def unnoticed(before: bytes, after: bytes) -> str:
    """The fault of accepting a damaged checkpoint: it holds other tensors than before."""
    one, other = (torch.load(io.BytesIO(data), weights_only=True)["state_dict"] for data in (before, after))
    same = one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    return "" if same else "a damaged checkpoint gives other numbers, and nothing says so"


@kind("checkpoint", share=8)
def checkpoint(rng: Random) -> Case:
    """Of this project: evaluated, resumed, or given as MODEL.INIT_WEIGHTS."""
    method = rng.choice(list(METHODS))
    file, damaged = only(f"runs/{method}"), rng.random() < 0.3
    before, path, pointer = file.read_bytes(), *run_files(method)
    after = sometimes_special(rng, change_bytes(rng, before) if damaged else changed_file(rng, file))
    case = Case("train", [], run_files(method) | {path: after})
    if rng.random() < 0.1:
        wrong = (b"../../outside/kept", b"/dev/zero", b"\xff\xfe", b"", b"\0", b"model.pth.tar-9", b"." * 5000)
        case.files[pointer] = rng.choice((*wrong, *SPECIAL))
    elif damaged and isinstance(after, bytes) and after != before:
        case.check = lambda: unnoticed(before, after)
    use = rng.randrange(5)
    if use < 2:
        case.argv = train(method, options=[*EVALUATED, *(["--load-epoch", 2] * (use == 1))])
    elif use < 4:
        if rng.random() < 0.5:
            case.files["run/config.yaml"] = content(f"runs/{method}/config.yaml")
        case.argv = train(method, "OPTIM.MAX_EPOCH", 2 + use % 2, output="run")
    else:
        case.argv = train(method, "MODEL.INIT_WEIGHTS", path, options=["--no-train"])
    return case


@kind("output folder", share=3)
def output_folder(rng: Random) -> Case:
    """Of a run to resume, with one or two of its files or folders replaced by links."""
    method = rng.choice(list(METHODS))
    folder = only(f"runs/{method}").parent.name
    settings = ("OPTIM.MAX_EPOCH", 3, "TEST.FINAL_MODEL", "best_val", "TEST.COMPUTE_CMAT", True)
    case = Case("train", train(method, *settings, output="run"), run_files(method))
    names = ["log.txt", "config.yaml", "results.json", "tensorboard", ".lock", ".lock.json", folder, "error.txt"]
    names += [f"{folder}/{name}" for name in ("checkpoint", "model.pth.tar-2", "model.pth.tar-3", "model-best.pth.tar")]
    names += ["predictions.npz", "tests.jsonl", "cmat.pt", "partial_test"]
    names += [".results.json.9-9.partial", f"{folder}/.checkpoint.9-9.partial"]
    for name in rng.sample(names, rng.choice((0, 1, 1, 2))):
        if name == folder:
            case.files = {key: value for key, value in case.files.items() if not key.startswith(f"run/{folder}/")}
        if not any(key.startswith(f"run/{folder}/") for key in case.files) and name.startswith(folder):
            continue
        case.files[f"run/{name}"] = rng.choice((*LINKS, *LINKS, *SPECIAL))
    return case


@kind("published checkpoint", share=5)
def published_checkpoint(rng: Random) -> Case:
    method = rng.choice(list(METHODS))
    path, _ = files = run_files(method, "published")
    changed = sometimes_special(rng, changed_file(rng, only(f"published/{method}")))
    argv = train(method, options=[*EVALUATED, *(["--load-epoch", 2] * rng.randrange(2))])
    return Case("train", argv, files | {path: changed})


def with_backbone(rng: Random, name: str, data: bytes, **files: bytes) -> Case:
    argv = train(rng.choice(("ZeroshotCLIP", "CoOp", "MPL")), options=["--no-train", "--backbone", name])
    if rng.random() < 0.1:
        argv[argv.index(name, argv.index("--no-train"))] = f"ViT-tiny:{name}"
    return Case("train", argv, {name: sometimes_special(rng, data), **files})


@kind("backbone", share=4)
def backbone(rng: Random) -> Case:
    """A state dict, also with configuration of open_clip next to it."""
    return with_backbone(rng, "weights.pt", changed_file(rng, Path(BASE, rng.choice(("tiny.pt", "legacy.pt")))))


def changed_safetensors(rng: Random, before: bytes) -> bytes:
    how = rng.random()
    if how < 0.6:
        (length,) = struct.unpack("<Q", before[:8])
        header = change_tree(rng, json.loads(before[8 : 8 + length]))
        written = as_json(header).encode(errors="surrogatepass")
        length = rng.choice((len(written), len(written), len(written), 0, 2**62, len(written) + 10**6))
        return struct.pack("<Q", length) + written + before[8 + length :]
    return change_bytes(rng, before) if how < 0.95 else foreign(rng)


@kind("safetensors", share=4)
def safetensors(rng: Random) -> Case:
    return with_backbone(rng, "weights.safetensors", changed_safetensors(rng, content("tiny.safetensors")))


def as_json(tree: Any) -> str:
    """JSON of nearly anything."""
    try:
        return json.dumps(tree, default=str, skipkeys=True)
    except (ValueError, RecursionError):  # a number of too many digits, or too deep
        return "[" * 5000 + "1" * 5000


# Files whose content changed under their names

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
def caches(rng: Random) -> Case:
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
    return sometimes_special(rng, change_bytes(rng, before))
