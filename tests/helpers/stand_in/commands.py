"""Commands on a stand-in CUDA device and on the CPU: python -m stand_in.commands FOLDER [METHOD ...]

They print the NLL of each method on both as JSON. On the stand-in a run is tested, tested
again from its checkpoint, and asked for predictions; then zero-shot CLIP answers with a method
of whole test sets, and images become a classifier.
"""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

from . import stand_in  # before torch

import inference.images  # isort: skip
from common.results import read_results  # isort: skip
from common.start import ROOT  # isort: skip
from drawn import sentences_of, write_eurosat  # isort: skip
from marks import of_json  # isort: skip
from fit.command import main as fit  # isort: skip
from inference.predict import main as predict  # isort: skip
from train import main as train  # isort: skip
from trainers import methods  # isort: skip

OWN = ["DATALOADER.NUM_WORKERS", "0", "DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "1"]
SPLIT = "eurosat/split_zhou_EuroSAT.json"
SPARSE = {"ZLaP"}  # the stand-in has no sparse tensors


class InOneThread:
    """A ThreadPoolExecutor; a thread of its own would not see the stand-in."""

    def __init__(self, *options, **named):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    map = staticmethod(map)


def run(method: str, folder: Path, output: Path, *options: str) -> float:
    words = {
        "--trainer": method,
        "--config-file": f"{ROOT}/configs/trainers/{method}/small.yaml",
        "--dataset-config-file": f"{ROOT}/configs/datasets/eurosat.yaml",
        "--root": folder,
        "--seed": 1,
        "--backbone": "small",
        "--output-dir": output,
    }
    if methods()[method].needs_sentences:
        names = [name for *_, name in of_json(folder / SPLIT)["test"]]
        options += "DATASET.SENTENCES", str(sentences_of(names, folder))
    if method == "DPC+CoOp":
        options += "TRAINER.COOP.TOPK", "2", "TRAINER.COOP.OVER", str(folder / "cpu/CoOp")
    precision = [f"TRAINER.{methods()[method].section()}.PREC", "fp32"]
    given = [str(word) for pair in words.items() for word in pair]
    train([*given, *options, *OWN, *precision])
    return read_results(output).nll


def main(folder: Path, names: list[str]) -> None:
    write_eurosat(folder, ["river", "forest", "highway"], 4, 3, 4, 64)
    photos = folder / "eurosat/2750"
    with_yaml = [
        name for name in methods() if (ROOT / f"configs/trainers/{name}/small.yaml").exists()
    ]
    for name in names or sorted({*with_yaml} - SPARSE):
        with redirect_stdout(sys.stderr):
            expected = run(name, folder, folder / f"cpu/{name}")
            with stand_in():
                found = [run(name, folder, folder / f"cuda/{name}")]
                if methods()[name].learns:
                    options = "--eval-only", "--model-dir", str(folder / f"cpu/{name}")
                    found.append(run(name, folder, folder / f"test/{name}", *options))
                    predict([str(folder / f"cpu/{name}"), str(photos)])
        print(json.dumps({"method": name, "cpu": expected, "stand-in": found}), flush=True)
    with redirect_stdout(sys.stderr), stand_in():
        zero_shot = ["--backbone", "small", "--classes", "river", "forest"]
        predict([str(photos), *zero_shot, "--transductive", "TransCLIP"])
        fit([str(photos), "--backbone", "small", "--minutes", "0", "--to", str(folder / "fit")])
        predict([str(folder / "fit"), str(photos)])


if __name__ == "__main__":
    with patch.object(inference.images, "ThreadPoolExecutor", InOneThread):
        main(Path(sys.argv[1]), sys.argv[2:])
