"""Cases of text files (YAML, study files, JSON), and of settings on the command line."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml
from dassl.config import get_cfg_default
from drawn import clip_config

from common.start import ROOT
from experiments.configuration import extend_cfg, flatten

from .cases import LINKS, SPECIAL, Case, kind, sometimes_special
from .changes import NAMES, NUMBERS, change_bytes, change_tree
from .corpus import BASE, METHODS, OTHERS, SETTINGS, SPLIT, STUDIED, dataset, train
from .weights import as_json, content

SNIPPETS = [
    "a: !!python/object/apply:os.system ['touch ../outside/made']",
    "!!python/object/new:type {args: ['z', [], {}], state: !!python/name:exec }",
    "a: &a [x, x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c]\ne: [*d, *d, *d, *d]",
    "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]" for i in range(10)),
    *("OPTIM: &a\n  LR: *a", "? [a, b]\n: c", "? {a: b}\n: c", "OPTIM: {<<: {LR: 0.1}, <<: [1]}", "!!int x"),
    *(f"OPTIM: {{LR: !!{kind} x}}" for kind in ("int", "float", "timestamp", "binary")),
    *("OPTIM: !!omap [a]", "OPTIM: !!set {LR}"),
    *(f"OPTIM: {{LR: {number}}}" for number in ("9" * 5000, "1:99:99.9e99", "2024-13-45", "0x", ".inf")),
    *("[" * 2000, "{a: " * 900 + "1" + "}" * 900, "- " * 2000, "--- a\n--- b", "%YAML 9.9\n---\na: b"),
    *("a: |\n\tb", "\tOPTIM: 1", "'", "&", "*a", "\x00", "\ufeffOPTIM: {LR: 0.1}", "\ud800"),
]
BASES = ("/dev/zero", "/dev/full", "'a\\0b'", '"a\\0b"', "~nosuchuser/x", "[]", "[[a]]", "config.yaml", "{a: b}", "1")
SNIPPETS += [f"_BASE_: {name}" for name in (*BASES, "null", ".", "x" * 5000, "[config.yaml]")]

WRONG_JSON = ("", "[" * 9000, '{"a":' * 3000, "NaN", "1" * 5000, "null", '"\\ud800"', '{"train": [1e999]}', "\x00")


def as_yaml(tree: Any) -> str:
    try:
        return yaml.dump(tree)
    except (ValueError, RecursionError):  # a number of too many digits, or too deep
        return "[" * 2000


def text_bytes(rng: Random, text: str) -> bytes:
    """The text in some encoding."""
    encoding = rng.choice(("utf-8",) * 20 + ("utf-16", "utf-32", "latin-1"))
    return text.encode(encoding, errors="replace" if encoding == "latin-1" else "surrogatepass")


def changed_text(rng: Random, tree: Any, write: Callable[[Any], str], others: Sequence[str]) -> bytes | str:
    """The text of a changed tree. Or its bytes are changed, or other text replaces it, precedes it or follows it."""
    before, how = write(tree), rng.random()
    if how < 0.6:
        data = text_bytes(rng, write(change_tree(rng, tree)))
    elif how < 0.85:
        other = rng.choice(others)
        data = text_bytes(rng, rng.choice((other, f"{before}\n{other}", f"{other}\n{before}")))
    else:
        data = change_bytes(rng, before.encode())
    return sometimes_special(rng, data)


def changed_yaml(rng: Random, tree: dict) -> bytes | str:
    return changed_text(rng, tree, as_yaml, SNIPPETS)


def changed_json(rng: Random, tree: Any) -> bytes | str:
    return changed_text(rng, tree, as_json, WRONG_JSON)


# YAML


@kind("YAML", share=10)
def config(rng: Random) -> Case:
    """The file of a method or a dataset, a base of it, or the config.yaml of an output folder."""
    method = rng.choice([*METHODS, "ZeroshotCLIP"])
    tree = SETTINGS | {"TRAINER": {method.upper(): {"PREC": "fp32"}}}
    argv = train(method, options=["--no-train", "--config-file", "config.yaml"])
    use = rng.randrange(7)
    case = Case("train", argv, {"config.yaml": as_yaml(tree).encode()})
    if use < 3:
        case.files["config.yaml"] = changed_yaml(rng, tree)
    elif use == 3:
        case.files["config.yaml"] = b"_BASE_: [base.yaml]\n" + case.files["config.yaml"]
        case.files["base.yaml"] = changed_yaml(rng, tree | {"_BASE_": []})
    elif use == 4:
        case.argv += ["SEED", "1"]
        case.argv[argv.index("--dataset-config-file") + 1] = "dataset.yaml"
        case.files["dataset.yaml"] = changed_yaml(rng, {"DATASET": {"NAME": "EuroSAT", "TEMPLATE": "a photo of a {}."}})
    elif use == 5:  # valid both as YAML and as Python, under any name
        name = rng.choice(("config", "config.py", "config.PY", "config.yml", "config.yaml.bak", "config.py.yaml"))
        case.argv[case.argv.index("config.yaml")] = name
        code = rng.choice(("open('../outside/made', 'w')", "__import__('os').system('touch ../outside/made')", "1 / 0"))
        case.files[name] = f"_BASE_: 'config.yaml'\nOUTPUT_DIR: {code}\n".encode()
    else:
        case = Case("train", train("CoOp", output="run", options=["--skip-finished"]))
        case.files = {"run/config.yaml": changed_yaml(rng, yaml.safe_load(content("runs/CoOp/config.yaml")))}
        case.files["run/results.json"] = content("runs/CoOp/results.json")
    return case


STUDY = {
    "protocols": ["base2new", "cross_dataset", "few_shot"],
    "trainers": {
        "ZeroshotCLIP": "small",
        "CoOp": {"config": "small", "cross_dataset": "small_cross_datasets", "overrides": {"OPTIM.MAX_EPOCH": 1}},
        "Deep": {"trainer": "MPL", "config": "small", "datasets": {"eurosat": {"OPTIM.LR": 0.01}}},
    },
    "datasets": ["eurosat", "dtd"],
    "source": "imagenet",
    "targets": ["eurosat"],
    "seeds": [1, 2],
    "shots": [1, 2],
    "backbone": "small",
    "cpus": 1,
    "root": "data",
    "output": "studied",
}


@kind("study file", share=4)
def study(rng: Random) -> Case:
    how = rng.choice((["status"], ["run", "--dry-run"], ["tables"]))
    return Case("study", [how[0], "study.yaml", *how[1:]], {"study.yaml": changed_yaml(rng, STUDY)})


# JSON


@kind("JSON", share=7)
def json_file(rng: Random) -> Case:
    return rng.choice((split, results, class_names, seeded_split, backbone_config, studied, logs))(rng)


def split(rng: Random) -> Case:
    """The split file of a dataset."""
    files = dataset()
    files[SPLIT] = changed_json(rng, json.loads(files[SPLIT]))
    return Case("train", train(rng.choice(("ZeroshotCLIP", "CoOp")), root="data", options=["--no-train"]), files)


def results(rng: Random) -> Case:
    """results.json, read by three commands."""
    file = {"run/results.json": changed_json(rng, json.loads(content("runs/CoOp/results.json")))}
    if rng.random() < 0.4:
        return Case("base2new", ["run", "run"], file)
    if rng.random() < 0.5:
        return Case("train", train("CoOp", output="run", options=["--skip-finished"]), file)
    return studied(rng)


@cache
def study_files() -> dict[str, bytes]:
    """Of a finished study of two runs."""
    files = [*Path(BASE, "studied").rglob("results.json"), *Path(BASE, "studied").rglob("config.yaml")]
    found = {str(path.relative_to(BASE)): path.read_bytes() for path in files}
    return found | {"study.yaml": as_yaml(STUDIED).encode()}


def studied(rng: Random) -> Case:
    """The results, or the settings, of a run of a study."""
    files: dict[str, bytes | str] = dict(study_files())
    name = rng.choice([name for name in files if name != "study.yaml"])
    change = changed_json if name.endswith(".json") else changed_yaml
    files[name] = change(rng, yaml.safe_load(files[name]))
    return Case("study", [rng.choice(("tables", "status", "report")), "study.yaml"], files)


@kind("study folder", share=3)
def study_folder(rng: Random) -> Case:
    """The folder of a study, with one of its files or folders replaced by a link or a special file."""
    files: dict[str, bytes | str] = dict(study_files())
    written = {str(path.relative_to(BASE)) for path in Path(BASE, "studied").rglob("*")}
    made = {f"studied/studies/study/tables.{kind}" for kind in ("md", "tex", "csv", "json")}
    name = rng.choice(sorted(written | made))
    files = {path: data for path, data in files.items() if path != name and not path.startswith(f"{name}/")}
    files[name] = rng.choice((*LINKS, *LINKS, *SPECIAL))
    command, *options = rng.choice((["tables"], ["report"], ["status"], ["run", "--dry-run"]))
    return Case("study", [command, "study.yaml", *options], files)


LOG = b"Finish training\n=> result\n* total: 9\n* accuracy: 90.5%\n* macro_f1: 80.0%\n"


def logs(rng: Random) -> Case:
    """Logs for parse_test_res.py."""
    files = {f"runs/seed{seed}/log.txt": sometimes_special(rng, change_bytes(rng, LOG)) for seed in (1, 2)}
    return Case("parse_test_res", ["runs", *rng.choice(([], ["--multi-exp"], ["--test-log"], ["--ci95"]))], files)


def image_folder(rng: Random, place: str, files: dict[str, bytes | str], *options: Any) -> Case:
    """Images of the user's own, in one folder for each class below each of `place`."""
    case = Case("train", train("ZeroshotCLIP", *options, root="data", options=["--no-train"]), files)
    case.argv[case.argv.index("--dataset-config-file") + 1] = str(ROOT / "configs/datasets/image_folder.yaml")
    image = content("data/eurosat/2750/0/train_0.png")
    for folder in (f"data/{part}/{name}" for part in place.split() for name in ("red", "green", "blue")):
        case.files |= {f"{folder}/{number}.png": image for number in range(3)}
    return case


def class_names(rng: Random) -> Case:
    if rng.random() < 0.2:
        text = change_bytes(rng, b"red bright red\ngreen green field\nblue sea\n")
        return image_folder(rng, "train test", {"data/classnames.txt": sometimes_special(rng, text)})
    names = {"red": "bright red", "green": "green field", "blue": "sea"}
    return image_folder(rng, "train test", {"data/classnames.json": changed_json(rng, names)})


def seeded_split(rng: Random) -> Case:
    classes = enumerate(("blue", "green", "red"))
    rows = [[f"{name}/{number}.png", label, name] for label, name in classes for number in range(3)]
    tree = {"train": rows[::3], "val": rows[1::3], "test": rows[2::3]}
    return image_folder(rng, ".", {"data/split_seed1.json": changed_json(rng, tree)}, "DATASET.SPLIT_SEED", 1)


def backbone_config(rng: Random) -> Case:
    """open_clip_config.json next to a backbone."""
    tree = {"model_cfg": clip_config(), "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.3] * 3}}
    files = {"hub/open_clip_config.json": changed_json(rng, tree)}
    files["hub/weights.safetensors"] = content("tiny.safetensors")
    return Case("train", train("CoOp", options=["--no-train", "--backbone", "hub/weights.safetensors"]), files)


# Settings

LENGTHY = {"OPTIM.MAX_EPOCH", "OPTIM.WARMUP_EPOCH", "DATALOADER.NUM_WORKERS", "DATALOADER.K_TRANSFORMS"}
LENGTHY |= {f"TRAINER.{name}" for name in ("CLIPLORA.N_ITERS", "LPPLUSPLUS.STEPS", "TPT.STEPS", "CTPT.STEPS")}
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
