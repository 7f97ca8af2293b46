"""Cases of predictions.npz."""

import io
from pathlib import Path
from random import Random

import numpy as np

from .cases import Case, kind, sometimes_special
from .corpus import BASE
from .pickles import change_zip


@kind("predictions", share=3)
def predictions(rng: Random) -> Case:
    """predictions.npz of one of two runs that are compared."""
    folder = Path(BASE, "runs/CoOp")
    kept = {name: (folder / name).read_bytes() for name in ("results.json", "predictions.npz")}
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
