"""Kill commands at random moments, and run them again: `make kill SEED=1`.

Each chain is a folder in which a command is cut off one to three times, and then finishes. A third
of the kills come by the clock, the others before a single file operation (hook/sitecustomize.py);
besides them, the disk is full from such an operation on. In the end, prompts (bit for bit), results
and tables must be those of an unbroken run, and no temporary file, stale epoch, lock or staging
folder may be left. Folders in which that is not so are kept.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import yaml
from archives import zipped
from dassl.utils import load_checkpoint
from drawn import write_eurosat
from finished import TIMES, members, slowdown
from PIL import Image
from safetensors.torch import load_file, save_file
from serving import serving

from clip.random_weights import random_clip
from common.start import ROOT
from datasets.small_world import SmallLand

PATIENCE = 300  # seconds for a command; each takes less than a tenth
# Statuses after a kill: a process that a command has started may be the one that ends.
ALLOWED = {"KILL": (-9, 0, 1, 2), "TERM": (130, -15, 0, 1, 2), "FULL": (0, 1, 2)}
# In tables: training times have one decimal there, accuracies have two.
OF_TIMES = rb'.*seconds".*\n|(?<![\d.])\d+\.\d(?!\d)|evaluated (once|up to \d+ times)|"evaluations": [\d.]+'
LEFT_OUT = {*TIMES, "content_sha256", "transient_epochs"}
# Of a process that was killed while it wrote: others may write there, so it stays for a day
KEPT = re.compile(r"(^|/)cache/\.")

TRAIN = (
    "{root}/train.py --root {shared}/data --backbone {shared}/tiny.safetensors --seed 1"
    " --config-file {root}/configs/trainers/common.yaml --output-dir out"
    " --dataset-config-file {root}/configs/datasets/eurosat.yaml {options} INPUT.SIZE '(32, 32)'"
    " DATASET.NUM_SHOTS 8 DATALOADER.TRAIN_X.BATCH_SIZE 4 OPTIM.MAX_EPOCH 5 "
)
COOP = TRAIN.replace("{options}", "--trainer CoOp")
IMAGES = "{shared}/data/eurosat/2750 --backbone {shared}/tiny.safetensors"
LEARNED = f"{COOP} DATALOADER.NUM_WORKERS 0"
COMMANDS = {
    "study": "{root}/tools/study.py run study.yaml --workers 2",
    "prepare": "{kills}/prepare_eurosat.py {shared}/facts.json eurosat --root out --mirror {mirror}",
    "CoOp": f"{COOP} TEST.FINAL_MODEL best_val DATALOADER.NUM_WORKERS 2",
    "MPL": TRAIN.replace("{options}", "--trainer MPL")
    + "TRAINER.MPL.PROMPT_DEPTH 3 TRAIN.CHECKPOINT_FREQ 2 DATALOADER.NUM_WORKERS 0",
    "evaluation": COOP.replace("INPUT.SIZE", "--eval-only --model-dir {shared}/out INPUT.SIZE")
    + "OUTPUT_DIR out/tested CACHE out/cache DATALOADER.NUM_WORKERS 1",
    "export": "{root}/tools/export.py {shared}/out --to out/exported --weights"
    " --backbone {shared}/tiny.safetensors",
    "embed": f"{{root}}/tools/embed.py --to out --layout clip-retrieval {IMAGES}",
    "answers": f"{{root}}/tools/predict.py --to out/ {IMAGES} {{shared}}/{{{{0..3}}}}.tar"
    " --classes a b",
}
AFTER = {"study": "{root}/tools/study.py tables study.yaml"}  # what it writes counts as well
STUDY = {
    "trainers": {
        name: {
            "config": "small",
            "overrides": {"OPTIM.MAX_EPOCH": 2, "DATALOADER.NUM_WORKERS": 0},
        }
        for name in ("CoOp", "MPL")
    },
    "datasets": ["small_land"],
    "seeds": [1],
    "shots": 4,
    "output": "out",
}


def words(command: str, shared: Path, mirror: str = "") -> list[str]:
    places = {"root": ROOT, "shared": shared, "mirror": mirror, "kills": Path(__file__).parent}
    return [sys.executable, *shlex.split(command.format(**places))]


def prepare(shared: Path, server) -> None:
    """The data of all commands, in a folder, and what the server has to download."""
    shared.mkdir(parents=True)
    names = ["red", "green field", "blue_lake", "grey"]
    write_eurosat(shared / "data", names, train=8, val=4, test=8)
    vision = {"image_size": 32, "patch_size": 16, "layers": 4, "width": 64}
    clip = random_clip("ViT-B-16", vision, {"width": 64, "layers": 4}, 64)
    save_file(clip.state_dict(), shared / "tiny.safetensors")
    SmallLand.prepare(shared / "drawn/small_land")
    (shared / "study.yaml").write_text(yaml.safe_dump(STUDY | {"root": str(shared / "drawn")}))
    for number, folder in enumerate(sorted((shared / "data/eurosat/2750").iterdir())):
        with tarfile.open(shared / f"{number}.tar", "w") as archive:
            archive.add(folder, folder.name)
    subprocess.run(words(LEARNED, shared), cwd=shared, check=True, capture_output=True)
    # 1,200 images as EuroSAT, with their own sizes and checksums
    Image.new("RGB", (64, 64)).save(shared / "image.png")
    image = (shared / "image.png").read_bytes()
    split = {
        part: [[f"class{n % 4}/{part}_{n}.png", n % 4, f"class {n % 4}"] for n in range(400)]
        for part in ("train", "val", "test")
    }
    archived = {f"2750/{row[0]}": image for rows in split.values() for row in rows}
    files = {
        "split_zhou_EuroSAT.json": json.dumps(split).encode(),
        "EuroSAT.zip": zipped(shared / "EuroSAT.zip", archived).read_bytes(),
    }
    facts = {}
    for name, data in files.items():
        facts[name] = {"bytes": len(data), "md5": hashlib.md5(data).hexdigest()}
        server.files[f"/eurosat/{name}"] = data
    (shared / "facts.json").write_text(json.dumps(facts))


def without_times(value: object) -> object:
    """Nested values as text; how often a run was tested is left out, as a killed one is tested
    again.
    """
    if isinstance(value, dict):
        left_out = LEFT_OUT | {"evaluations"}
        return [(key, without_times(value[key])) for key in value if key not in left_out]
    if isinstance(value, list | tuple):
        return [without_times(one) for one in value]
    return value.numpy().tobytes() if hasattr(value, "numpy") else value


def content(folder: Path) -> dict[str, str]:
    """What must not depend on kills: the names of all files below a folder, and the content of each
    but for times; of logs and of TensorBoard's events only that there are some.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        value: object = path.read_bytes() if path.is_file() else "a folder"
        if KEPT.search(name):
            continue
        if "log.txt" in name or "tensorboard/" in name:
            name = re.sub(r"(log\.txt|tensorboard/).*", r"\1", name)
            value = "some"
        elif ".pth.tar" in name:
            value = load_checkpoint(str(path))
        elif path.suffix == ".safetensors":
            value = sorted(load_file(path).items())  # the order of its metadata is random
        elif path.name in ("results.json", "calibration.json"):
            value = json.loads(value)
        elif path.name == "tests.jsonl":
            lines = {repr(without_times(json.loads(line))) for line in value.splitlines() if line}
            value = sorted(lines)
        elif path.stem == "tables":
            value = re.sub(OF_TIMES, b"", value)
        found[name] = hashlib.sha256(repr(without_times(value)).encode()).hexdigest()
    return found


def start(command: list[str], folder: Path, **cut: object) -> subprocess.Popen:
    """Begin the command in a session of its own, with its output in a file in its folder; `cut`:
    at, how.
    """
    (folder / "out").mkdir(parents=True, exist_ok=True)
    shutil.copy(folder.parents[1] / "shared/study.yaml", folder)
    operations = folder / "operations"
    operations.unlink(missing_ok=True)
    hook = str(Path(__file__).with_name("hook"))
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "KILLS_FILE": str(operations),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join([hook, *sys.path[1:]]),
    }
    environment |= {f"KILLS_{key.upper()}": str(value) for key, value in cut.items()}
    with open(folder / "printed.txt", "a") as printed:
        outputs = {"stdout": printed, "stderr": printed, "start_new_session": True}
        return subprocess.Popen(command, cwd=folder, env=environment, **outputs)


def ends(process: subprocess.Popen, seconds: float = PATIENCE) -> bool:
    """Whether the command ends within these seconds."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def cut_off(command, folder, how: str, rng: Random, seconds: float, operations: int) -> str:
    """Run the command and cut it off at a random moment; returns the fault of its end."""
    if how != "FULL" and rng.random() < 1 / 3:
        process = start(command, folder)
        if not ends(process, rng.uniform(0, seconds * slowdown())):
            everybody = members(process.pid) if rng.random() < 0.5 else []
            for victim in {process.pid, *everybody} & {*members(process.pid)}:
                os.kill(victim, getattr(signal, f"SIG{how}"))
    else:
        process = start(command, folder, at=rng.randint(1, operations), how=how)
    fault = "" if ends(process, PATIENCE * slowdown()) else f"it does not end after {how}"
    deadline = time.monotonic() + 20 * slowdown()
    while left := members(process.pid):
        if fault or time.monotonic() > deadline:
            os.kill(left[0], signal.SIGKILL)
            fault = fault or "its processes outlive it"
        time.sleep(0.05)
    if not fault and process.wait() not in ALLOWED[how]:
        fault = f"exit status {process.returncode} after {how}"
    return fault


def kill_at_random(name: str, cuts: dict[str, int], folder: Path, server, seed: int):
    """Cut a command off so many times in each way; chains of one to three cuts each end with a
    finished run. Returns the number of chains, and what went wrong.
    """
    shared = folder.parent / "shared"
    command = words(COMMANDS[name], shared, server.address)
    rng = Random(f"{seed} {name}")
    ways = [how for how, count in cuts.items() for _ in range(count)]
    rng.shuffle(ways)
    wrong = []
    chains = 0

    def final(place: Path) -> dict[str, str]:
        if name in AFTER:
            subprocess.run(words(AFTER[name], shared), cwd=place, check=True, capture_output=True)
        return content(place / "out")

    begun = time.monotonic()
    process = start(command, folder / "unbroken")
    assert ends(process) and process.returncode == 0, (folder / "unbroken/printed.txt").read_text()
    seconds = time.monotonic() - begun
    operations = (folder / "unbroken/operations").stat().st_size
    expected = final(folder / "unbroken")
    while ways:
        chain = folder / f"chain{chains}"
        faults = []
        for _ in range(min(rng.choice((1, 1, 2, 3)), len(ways))):
            faults.append(cut_off(command, chain, ways.pop(), rng, seconds, operations))
        process = start(command, chain)
        if not ends(process) or process.returncode:
            faults.append(f"exit status {process.returncode} in the end")
        else:
            found = final(chain)
            differing = {*expected.items()} ^ {*found.items()}
            faults += [f"left over, missing or different: {name}" for name, _ in differing]
        # torch's loader prints one if its workers get the signal, TensorBoard's thread if the disk
        # is full.
        bug = r"^(?!Exception (ignored|in thread)).*\nTraceback"
        if re.search(bug, (chain / "printed.txt").read_text(), re.MULTILINE):
            faults.append("a traceback")
        chains += 1
        if any(faults):
            wrong.append(f"{chain}: {'; '.join(filter(None, faults))}")
            print(wrong[-1], flush=True)
        else:
            shutil.rmtree(chain)
    return chains, wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="make kill", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kill", type=int, default=100, help="number of SIGKILL")
    parser.add_argument("--term", type=int, default=50, help="number of SIGTERM")
    parser.add_argument("--full", type=int, default=50, help="number of full disks")
    parser.add_argument("--only", nargs="+", default=[*COMMANDS], choices=COMMANDS)
    parser.add_argument("--keep", type=Path, default=Path("output/kill"))
    args = parser.parse_args()
    place = args.keep.absolute() / f"seed{args.seed}"
    shutil.rmtree(place, ignore_errors=True)
    totals = Counter(KILL=args.kill, TERM=args.term, FULL=args.full)
    with serving({}) as server, ThreadPoolExecutor(2) as pool:
        prepare(place / "shared", server)
        futures = {}
        for index, name in enumerate(args.only):
            # Nearly equal shares
            cuts = {how: (total + index) // len(args.only) for how, total in totals.items()}
            given = name, cuts, place / name, server, args.seed
            futures[name] = pool.submit(kill_at_random, *given)
        results = {name: future.result() for name, future in futures.items()}
    for name, (chains, wrong) in results.items():
        print(f"{name:12}{chains:5} chains, {chains - len(wrong):5} identical")
    return 1 if any(wrong for _, wrong in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
