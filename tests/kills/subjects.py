"""The commands that are killed, and what each must have left at its end."""

import hashlib
import json
import re
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
import yaml
from archives import zipped
from dassl.utils import load_checkpoint
from drawn import write_eurosat
from finished import TIMES
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from clip.random_weights import random_clip
from common.start import ROOT
from datasets.small_world import SmallLand

# In tables: training times have one decimal there, accuracies have two.
OF_TIMES = rb'.*seconds".*\n|(?<![\d.])\d+\.\d(?!\d)|evaluated (once|up to \d+ times)|"evaluations": [\d.]+'


@dataclass
class Subject:
    """A command that resumes.

    Attributes:
        command: its words; it runs in a folder of its own, which has `files` at first.
        place: where in that folder it writes.
        after: a command that comes after it; what this one writes counts as well.
    """

    name: str
    command: list[str]
    place: str = "out"
    after: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def content(folder: Path) -> dict[str, object]:
    """What must not depend on kills: the names of all files below a folder, and the content of
    each.

    Of checkpoints it is every tensor and number, of results and tables all but times and dates, of
    logs and of events for TensorBoard only that there are some. A run that was killed after its
    test is tested again, so how often it was tested is left out.
    """
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if re.search(r"(^|/)log\.txt", name):
            found[re.sub(r"log\.txt.*", "log.txt", name)] = "a log"
        elif re.search(r"(^|/)cache/\.", name):
            # Of a process that was killed while it wrote; others may write there, so it stays for a
            # day
            continue
        elif "tensorboard/" in name:
            found[name.partition("tensorboard/")[0] + "tensorboard/"] = "events"
        elif path.is_dir():
            found[f"{name}/"] = "a folder"
        elif ".pth.tar" in name:
            found[name] = digest(load_checkpoint(str(path)))
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:  # the order of its metadata is random
                tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
                found[name] = digest([sorted((file.metadata() or {}).items()), tensors])
        elif path.name == "results.json":
            results = {
                key: value
                for key, value in json.loads(path.read_text()).items()
                if key not in TIMES
            }
            assert results.get("data_use", {}).get("test", {}).pop("evaluations", 1) >= 1
            found[name] = results
        elif path.name == "calibration.json":
            fitted = json.loads(path.read_text())
            left_out = ("date", "content_sha256")
            found[name] = {key: value for key, value in fitted.items() if key not in left_out}
        elif path.name == "tests.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines() if line]
            found[name] = {
                json.dumps({key: value for key, value in line.items() if key != "date"})
                for line in lines
            }
        else:
            text = path.read_bytes()
            if path.stem == "tables":
                text = re.sub(OF_TIMES, b"", text)
            found[name] = hashlib.sha256(text).hexdigest()
    return found


def digest(tree: object) -> str:
    """A checksum of nested values and tensors; times, and the list of files to delete, are left
    out.
    """
    if isinstance(tree, dict):
        left_out = ("train_seconds", "transient_epochs")
        tree = [(key, digest(value)) for key, value in tree.items() if key not in left_out]
    elif isinstance(tree, list | tuple):
        tree = list(map(digest, tree))
    content = tree.numpy().tobytes() if isinstance(tree, torch.Tensor) else repr(tree).encode()
    return hashlib.sha256(content).hexdigest()


def differences(expected: dict[str, object], found: dict[str, object]) -> list[str]:
    """The files left over, missing or different; empty if all is the same."""
    return [
        *(f"left over: {name}" for name in found.keys() - expected.keys()),
        *(f"missing: {name}" for name in expected.keys() - found.keys()),
        *(
            f"different: {name}"
            for name in expected.keys() & found.keys()
            if expected[name] != found[name]
        ),
    ]


# The commands


def training(method: str, shared: Path, *settings: object) -> Subject:
    configs = ROOT / "configs"
    argv = [
        ROOT / "train.py",
        "--root",
        shared / "data",
        "--backbone",
        shared / "tiny.safetensors",
        "--seed",
        1,
    ]
    argv += [
        "--output-dir",
        "out",
        "--trainer",
        method,
        "--config-file",
        configs / "trainers/common.yaml",
    ]
    argv += ["--dataset-config-file", configs / "datasets/eurosat.yaml", "INPUT.SIZE", "(32, 32)"]
    argv += [
        "DATASET.NUM_SHOTS",
        8,
        "DATALOADER.TRAIN_X.BATCH_SIZE",
        4,
        "OPTIM.MAX_EPOCH",
        5,
        *settings,
    ]
    return Subject(method, [sys.executable, *map(str, argv)])


def evaluation(shared: Path, run: Path) -> Subject:
    """Of a run's prompts, whose features are kept for other runs."""
    subject = training(
        "CoOp",
        shared,
        "OUTPUT_DIR",
        "out/tested",
        "CACHE",
        "out/cache",
        "DATALOADER.NUM_WORKERS",
        1,
    )
    subject.command[2:2] = ["--eval-only", "--model-dir", str(run)]
    subject.name = "evaluation"
    return subject


def export(shared: Path, run: Path) -> Subject:
    tool = [
        sys.executable,
        str(ROOT / "tools/export.py"),
        str(run),
        "--to",
        "out/exported",
        "--weights",
    ]
    backbone = ["--backbone", str(shared / "tiny.safetensors")]
    return Subject("export", [*tool, *backbone], files={"out/notes.txt": "It stays as it is.\n"})


def embedding(shared: Path) -> Subject:
    """The features of 80 images."""
    tool = [sys.executable, str(ROOT / "tools/embed.py"), "--to", "out"]
    backbone = ["--backbone", str(shared / "tiny.safetensors")]
    images = str(shared / "data/eurosat/2750")
    return Subject("embed", [*tool, *backbone, "--layout", "clip-retrieval", images])


def answers(shared: Path) -> Subject:
    """The answers for 80 images and four tars, each of which is a file."""
    images = shared / "data/eurosat/2750"
    for number, folder in enumerate(sorted(images.iterdir())):
        with tarfile.open(shared / f"{number}.tar", "w") as archive:
            archive.add(folder, folder.name)
    tool = [sys.executable, str(ROOT / "tools/predict.py"), "--to", "out/"]
    options = ["--backbone", str(shared / "tiny.safetensors"), str(images)]
    return Subject("answers", [*tool, *options, str(shared / "{0..3}.tar"), "--classes", "a", "b"])


def study(shared: Path) -> Subject:
    quick = {"OPTIM.MAX_EPOCH": 2, "DATALOADER.NUM_WORKERS": 0}
    content = {
        "trainers": {name: {"config": "small", "overrides": quick} for name in ("CoOp", "MPL")},
        "datasets": ["small_land"],
        "seeds": [1],
        "shots": 4,
        "root": str(shared / "drawn"),
        "output": "out",
    }
    tool = [sys.executable, str(ROOT / "tools/study.py")]
    return Subject(
        "study",
        [*tool, "run", "study.yaml", "--workers", "2"],
        after=[*tool, "tables", "study.yaml"],
        files={"study.yaml": yaml.safe_dump(content)},
    )


def preparation(shared: Path, server) -> Subject:
    """tools/prepare.py with 1,200 images as EuroSAT, with their own sizes and checksums."""
    split = {
        part: [[f"class{n % 4}/{part}_{n}.png", n % 4, f"class {n % 4}"] for n in range(400)]
        for part in ("train", "val", "test")
    }
    Image.new("RGB", (64, 64)).save(shared / "image.png")
    image = (shared / "image.png").read_bytes()
    members = {
        f"2750/{row[0]}": image + bytes(n) for rows in split.values() for n, row in enumerate(rows)
    }
    files = {"split_zhou_EuroSAT.json": json.dumps(split).encode()}
    files["EuroSAT.zip"] = zipped(shared / "EuroSAT.zip", members).read_bytes()
    facts = {
        name: {"bytes": len(data), "md5": hashlib.md5(data).hexdigest()}
        for name, data in files.items()
    }
    (shared / "facts.json").write_text(json.dumps(facts))
    server.files.update({f"/eurosat/{name}": data for name, data in files.items()})
    launcher = [
        sys.executable,
        str(Path(__file__).with_name("prepare_eurosat.py")),
        str(shared / "facts.json"),
    ]
    return Subject("prepare", [*launcher, "eurosat", "--root", "out", "--mirror", server.address])


def subjects(shared: Path, server) -> list[Subject]:
    """All of them; `shared` is a folder for their data, `server` (tests/serving.py) gets the files
    to download.
    """
    write_eurosat(
        shared / "data", ["red", "green field", "blue_lake", "grey"], train=8, val=4, test=8
    )
    vision = {"image_size": 32, "patch_size": 16, "layers": 4, "width": 64}
    model = random_clip("ViT-B-16", vision, {"width": 64, "layers": 4}, 64)
    save_file(model.state_dict(), shared / "tiny.safetensors")
    SmallLand.prepare(shared / "drawn/small_land")
    shallow = ("TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 3, "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 3)
    learned = training("CoOp", shared, "DATALOADER.NUM_WORKERS", 0)
    subprocess.run(learned.command, cwd=shared, check=True, capture_output=True)
    parquet = [embedding(shared), answers(shared)] if find_spec("pyarrow") else []
    return [
        *parquet,
        export(shared, shared / "out"),
        evaluation(shared, shared / "out"),
        training(
            "MPL",
            shared,
            "TRAINER.MPL.PROMPT_DEPTH",
            3,
            "TRAIN.CHECKPOINT_FREQ",
            2,
            "DATALOADER.NUM_WORKERS",
            0,
        ),
        training("CoOp", shared, "TEST.FINAL_MODEL", "best_val", "DATALOADER.NUM_WORKERS", 2),
        training("PromptSRC", shared, *shallow, "DATALOADER.NUM_WORKERS", 0),
        preparation(shared, server),
        study(shared),
    ]
