"""Cases of predictions.npz and of few-shot choices."""

import io
import json
import pickle
from random import Random

import numpy as np
from dassl.data.datasets import Datum

from .cases import Case, kind, sometimes_special
from .changes import change_bytes, change_tree
from .corpus import BASE, SPLIT
from .pickles import change_pickle, change_zip
from .weights import as_json, content


@kind("predictions", share=3)
def predictions(rng: Random) -> Case:
    """predictions.npz of one of two runs that are compared."""
    kept = {name: content(f"runs/CoOp/{name}") for name in ("results.json", "predictions.npz")}
    files: dict[str, bytes | str] = {f"{run}/{name}": kept[name] for run in ("one", "two") for name in kept}
    before = kept["predictions.npz"]
    after = change_zip(rng, before) if rng.random() < 0.4 else arrays(rng, before)
    files["one/predictions.npz"] = sometimes_special(rng, after)
    return Case("compare", ["one", "two"], files)


def arrays(rng: Random, before: bytes) -> bytes:
    """An .npz file with one array changed in type, shape or value."""
    with np.load(io.BytesIO(before)) as archive:
        found = dict(archive)
    name = rng.choice(sorted(found))
    value = found[name]
    changed = (
        np.array([{}], dtype=object), value[:0] if value.ndim else value, value.astype("S"), value[None],
        np.full_like(value, value.flat[0]), value.astype(complex) if value.dtype.kind in "if" else value,
        np.full(value.shape, np.nan) if value.dtype.kind == "f" else np.full(value.shape, -1),
    )  # fmt: skip
    found[name] = rng.choice(changed)
    if rng.random() < 0.1:
        del found[name]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **found)
    return buffer.getvalue()


@kind("few-shot choices", share=3)
def choices(rng: Random) -> Case:
    """A pickle of CoOp or a .jsonl file of 2SFS with an image of each class."""
    rows = json.loads(content(SPLIT))["train"]
    chosen = {label: (f"eurosat/2750/{path}", name) for path, label, name in rows}
    items = [Datum(path, label, classname=name) for label, (path, name) in chosen.items()]
    pickled = pickle.dumps({"train": items}, protocol=rng.choice((2, 4)))
    data, name = (change_pickle if rng.random() < 0.8 else change_bytes)(rng, pickled), "a.pkl"
    if rng.random() < 0.4:
        lines = change_tree(rng, [vars(item) for item in items])
        lines = lines if isinstance(lines, list | tuple) else [lines]
        data, name = "\n".join(map(as_json, lines)).encode(errors="surrogatepass"), "a_train.jsonl"
    files = {name: sometimes_special(rng, data)}
    return Case("prepare", ["splits", "eurosat", "--root", f"{BASE}/data", "--file", name], files)
