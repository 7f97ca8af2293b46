"""Cases of exported models, run folders and images from anybody, of predictions.npz, and of few-shot choices."""

import hashlib
import io
import json
import pickle
from random import Random

import numpy as np
import yaml
from dassl.data.datasets import Datum

from .cases import Case, kind, sometimes_special
from .changes import change_bytes, change_tree
from .corpus import BASE, SPLIT, run_files
from .images import changed_picture, pictures
from .pickles import change_pickle, change_zip
from .texts import changed_json, changed_yaml
from .weights import as_json, changed_file, changed_safetensors, content, only


@kind("exported model", share=5)
def exported(rng: Random) -> Case:
    """A folder that tools/export.py wrote, with a change in one file; or an image for it."""
    description, prompts = json.loads(content("exported/config.json")), content("exported/prompts.safetensors")
    image = pictures()["0 PNG"]
    case = Case("predict", ["model", "image.png", "--backbone", f"{BASE}/tiny.pt"])
    use = rng.randrange(6)
    if use == 5:
        sizes = (b"a" * 10**6, b"{}" * 10**6, b"a b " * 300, b"\n".join(b"%d" % number for number in range(200_000)))
        names = change_bytes(rng, b"red\ngreen field\n" + "blåtime\n".encode())
        names = rng.choice(sizes) if rng.random() < 0.2 else names
        case.files["names.txt"] = sometimes_special(rng, names)
        case.argv += ["--classes-file", "names.txt"]
    elif use < 2:
        case.files["model/config.json"] = changed_json(rng, description)
    elif use < 4:
        prompts = changed_safetensors(rng, prompts)
        if use == 2:  # whoever changes it can write its checksum
            description["prompts_sha256"] = hashlib.sha256(prompts).hexdigest()
    else:
        image = changed_picture(rng)
        case.argv.append(rng.choice(("--json", "--csv", "--topk=1")))
        if rng.random() < 0.3:
            case.argv[1] = "images"
            case.files |= {f"images/{special}.png": special for special in ("fifo", "socket")}
            name = rng.choice(("=a\x1b[2J\n", "\u202ea", "a" * 200))
            case.files |= {"images/a.png": image, f"images/{name}.png": pictures()["0 PNG"]}
    case.files.setdefault("model/config.json", json.dumps(description).encode())
    case.files |= {"model/prompts.safetensors": prompts, "image.png": sometimes_special(rng, image)}
    return case


@kind("run as a model", share=3)
def run(rng: Random) -> Case:
    """The folder of a finished run, with a change in one file."""
    files, changed = run_files("CoOp", "runs", "config.yaml", "results.json"), rng.randrange(3)
    path, config, results, _ = files
    if changed == 0:
        files[path] = changed_file(rng, only("runs/CoOp"))
    elif changed == 1:
        files[config] = changed_yaml(rng, yaml.safe_load(files[config]))
    else:
        files[results] = changed_json(rng, json.loads(files[results]))
    argv = ["run", "image.png", "--backbone", f"{BASE}/tiny.pt"]
    return Case("predict", argv, files | {"image.png": pictures()["0 PNG"]})


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
