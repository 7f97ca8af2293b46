"""Cases of tools/predict.py: exported models, run folders and images from anybody."""

import hashlib
import json
from random import Random

import yaml

from .cases import Case, kind, sometimes_special
from .changes import change_bytes
from .corpus import BASE, run_files
from .images import crafted_png, pictures, thin_png
from .texts import changed_json, changed_yaml
from .weights import changed_file, changed_safetensors, content, only


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
        crafted = rng.choice((crafted_png, thin_png))
        image = crafted(rng) if rng.random() < 0.5 else change_bytes(rng, rng.choice(list(pictures().values())))
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
