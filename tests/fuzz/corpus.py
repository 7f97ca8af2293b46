"""The valid files that are changed: backbones, checkpoints of several methods, drawn data, archives of datasets."""

import contextlib
import io
import json
import os
import pickle
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import yaml
from dassl.utils import load_checkpoint
from drawn import clip_config, section_pairs, small_clip, write_eurosat
from finished import finish
from published import packed
from safetensors.torch import save_file
from torch import nn
from trees import build_tree
from weight_files import Hostile

import trainers
from common.start import ROOT
from experiments.arguments import parse_arguments
from experiments.configuration import setup_cfg
from experiments.studies import command as study
from experiments.studies.study_file import load
from inference import export
from train import main as execute
from trainers.base.feature_trainer import FittedTrainer

BASE = "../../base"  # from the folder of a case
BOTH = {"PROMPT_DEPTH_VISION": 2, "PROMPT_DEPTH_TEXT": 2}
METHODS = {"CoOp": {"N_CTX": 4}, "MPL": {"PROMPT_DEPTH": 2}, "VPT": {"PROMPT_DEPTH_VISION": 2}, "PromptSRC": BOTH}
METHODS["KgCoOp"] = {}
# Those without checkpoints here; what they need on the tiny backbone. TCP needs more layers than it has.
OTHERS = {"MaPLe": {"PROMPT_DEPTH": 2}, "IVLP": BOTH, "MMRL": {"REP_LAYERS": [1, 2], "REP_DIM": 8}}
OTHERS |= {"MMA": {"ADAPTER_START": 1, "ADAPTER_END": 2}, "CLIPLoRA": {"N_ITERS": 4}}
OTHERS = {
    name: OTHERS.get(base := name.rpartition("+")[2], METHODS.get(base, {})) for name in sorted(trainers.methods())
}
STUDIED = {"trainers": {"ZeroshotCLIP": "small"}, "datasets": ["eurosat"], "seeds": [1], "output": "studied"}
PACKED = ("eurosat", "dtd", "imagenet_r", "caltech101", "imagenet")  # zip, tar.gz, tar, nested archives, MATLAB's files
SETTINGS = {  # for the tiny backbone
    "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 4}, "TEST": {"BATCH_SIZE": 4}},
    "DATASET": {"NUM_SHOTS": 1},
    "INPUT": {"SIZE": [32, 32], "TRANSFORMS": ["random_resized_crop", "random_flip", "normalize"]},
    "OPTIM": {"NAME": "sgd", "LR": 0.002, "MAX_EPOCH": 2, "LR_SCHEDULER": "cosine", "WARMUP_EPOCH": 1},
}


def train(method: str, *overrides, output: str = "out", root: str = f"{BASE}/data", options=()) -> list[str]:
    """A command line of train.py, from the folder of a case, for the tiny backbone and drawn data."""
    argv = ["--root", root, "--backbone", f"{BASE}/tiny.pt", "--output-dir", output, "--seed", 1, "--trainer", method]
    argv += ["--dataset-config-file", ROOT / "configs/datasets/eurosat.yaml", "--config-file", f"{BASE}/config.yaml"]
    own = section_pairs(method, OTHERS[method])
    own += ["OPTIM.MAX_EPOCH", 1] if issubclass(trainers.methods()[method], FittedTrainer) else []
    return [str(argument) for argument in (*argv, *options, *own, *overrides)]


def saved(tree, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer, pickle_module=pickle, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def published(state: dict[str, torch.Tensor]) -> dict:
    """A checkpoint as the published code writes it: with the classes' tokens, the optimiser, a pickled scheduler."""
    tensors = OrderedDict((f"module.{key}", value) for key, value in state.items())
    tensors["module.prompt_learner.token_prefix"] = torch.randn(3, 1, 64)
    parameters = [nn.Parameter(value.clone()) for value in state.values()]
    optimizer = torch.optim.SGD(parameters, lr=0.0035, momentum=0.9)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5.0)
    scheduler = {"successor": successor, "warmup_epoch": 1, "cons_lr": 1e-5, "base_lrs": [0.0035], "last_epoch": 2}
    return {"state_dict": tensors, "epoch": 2, "optimizer": optimizer.state_dict(), "scheduler": scheduler}


SPLIT = "data/eurosat/split_zhou_EuroSAT.json"


def dataset() -> dict[str, Any]:
    """The images and the split file of the drawn EuroSAT, as files of a case."""
    paths = (path for path in sorted(Path(BASE, "data").rglob("*")) if path.is_file())
    return {str(path.relative_to(BASE)): path.read_bytes() for path in paths}


def run_files(method: str, kind: str = "runs", *others: str) -> dict[str, Any]:
    """The checkpoint of a run in the corpus, its pointer and other files of it, as files of `run/`."""
    folder = Path(BASE, kind, method)
    (checkpoint,) = folder.glob("*/model.pth.tar-2")
    paths = [checkpoint, *(folder / name for name in others)]
    files: dict[str, Any] = {f"run/{path.relative_to(folder)}": path.read_bytes() for path in paths}
    return files | {f"run/{checkpoint.parent.name}/checkpoint": b"model.pth.tar-2\n"}


def build(base: Path, case: Path) -> None:
    """Write the corpus to `base`, the same each time; runs start in a folder like a case's, by relative paths."""
    torch.manual_seed(1)
    base.mkdir()
    # Half-precision weights of a CLIP of 32 px, two layers and width 64, by OpenAI's names.
    state = OrderedDict((key, value.half()) for key, value in small_clip().state_dict().items())
    torch.save(state, base / "tiny.pt")
    save_file(state, base / "tiny.safetensors")
    (base / "legacy.pt").write_bytes(saved({"state_dict": state, "epoch": 3}, legacy=True))
    torch.jit.script(Hostile("../outside/kept")).save(base / "writing.pt")
    (base / "config.yaml").write_text(json.dumps(SETTINGS, indent=1))
    (base / "ViT-tiny.json").write_text(json.dumps(clip_config()))
    write_eurosat(base / "data", ["red", "green field"], train=2, val=1, test=2)
    os.chdir(case)
    time.time = lambda: 1e9  # the seconds in a checkpoint
    os.environ["XDG_CACHE_HOME"] = str(base)
    for method in METHODS:
        with contextlib.redirect_stderr(io.StringIO()):
            execute(train(method, output=f"{BASE}/runs/{method}"))
        (file,) = (base / "runs" / method).glob("*/model.pth.tar-2")
        prompts = load_checkpoint(str(file))["state_dict"]
        (base / "published" / method / file.parent.name).mkdir(parents=True)
        torch.save(published(prompts), base / "published" / method / file.parent.name / file.name)
    tested = ["--eval-only", "--model-dir", f"{BASE}/runs/CoOp"]
    cached = ("CACHE", f"{BASE}/cache", "DATALOADER.CACHE_TEST", True)
    execute(train("CoOp", *cached, output=f"{BASE}/cached", options=tested))
    (base / "study.yaml").write_text(yaml.dump(STUDIED))
    for run in load(base / "study.yaml").runs():  # made-up results with a real config.yaml
        finish(run, 50.0, versions={"torch": "2.0"})
        (run.folder / "config.yaml").write_text(setup_cfg(parse_arguments(list(run.arguments))).dump())
    study.main(["report", f"{BASE}/study.yaml"])
    Path("studied").rename(base / "studied")
    export.main([f"{BASE}/runs/CoOp", "--to", f"{BASE}/exported"])
    for name in PACKED:
        for file, content in packed(name, build_tree(name, base / "trees"), base / f"packing_{name}").items():
            (base / "packed" / name).mkdir(parents=True, exist_ok=True)
            (base / "packed" / name / file).write_bytes(content)
