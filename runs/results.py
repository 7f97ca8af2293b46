"""The record of a run for results.json: what it measured, its data-use card, and its machine.

The card says which images the run has seen in which phase, and where its settings come from.
"""

import json
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL
import torch
import torchvision
from dassl.config import flatten
from yacs.config import CfgNode

from common.names import title
from common.records import Phase, SelectionRecord
from common.results import MEASURES
from common.version import made
from measures.results import RECORDED, SELECTED
from trainers.base import data_use, streams
from trainers.base.trainer import usable

from .config import RunSpec

DRIVER = Path("/proc/driver/nvidia/version")  # exists where NVIDIA's driver is loaded
TESTS = "tests.jsonl"  # a line for each test that ended
MOST_TESTS = 1 << 20  # lines


class Record:
    """The record of a run, from before its training to its end.

    Raises UsageError if the run would choose on test images, and TEST.SELECT_ON_TEST is False.
    """

    def __init__(self, spec: RunSpec, trainer: Any):
        self.spec = spec
        self.trainer = trainer
        self.method = getattr(trainer, "method", None)  # None: a trainer of another project
        # The images behind the prompts that the run starts from, and the choices for them; None if
        # they are not known.
        self.earlier: Sequence[Phase] | None = getattr(
            self.method, "inherited_phases", None if spec.args.eval_only else []
        )
        self.choices = self.all_choices()

    def all_choices(self) -> list[SelectionRecord] | None:
        spec = self.spec
        method = self.method
        evaluates = self.spec.args.eval_only
        earlier: Sequence[SelectionRecord] | None = getattr(
            method, "inherited_choices", None if evaluates else []
        )
        new = [choice for choice in spec.chosen.choices if choice not in (earlier or ())]
        if new and method:
            method.inherit(new)
        trains = not evaluates and is_trainable(self.trainer)
        if method and (trains or not method.learns):
            new += method.choices
        elif trains:
            new += data_use.selections_of_run(spec.cfg, title(spec.cfg), self.trainer.dm.dataset)
        if new and not spec.cfg.TEST.SELECT_ON_TEST:
            data_use.check_choices(new)
        choices = None if earlier is None and not new else [*(earlier or ()), *new]
        if choices and (selecting := data_use.selections_using_test_images(choices)):
            print(
                f"{SELECTED}: {'; '.join(map(data_use.selection_text, selecting))} (the results "
                "are marked)"
            )
        return choices

    def epochs(self) -> tuple[int | None, int | None]:
        """The number of epochs that were trained (of an evaluation: behind the prompts that it
        loaded), and the epoch that was tested; None if it is not known, or nothing was tested."""
        spec = self.spec
        trainer = self.trainer
        if spec.args.eval_only and self.method:  # it knows what it has loaded
            loaded = getattr(self.method, "loaded_epoch", None)
            return loaded, loaded
        if spec.args.eval_only:
            loaded = getattr(trainer, "loaded_epoch", spec.args.load_epoch)
            return loaded, loaded
        if not is_trainable(trainer):
            return 0, 0
        epochs = spec.cfg.OPTIM.MAX_EPOCH
        if spec.cfg.TEST.NO_TEST:
            return epochs, None
        if spec.cfg.TEST.FINAL_MODEL == "best_val":
            return epochs, getattr(self.method or trainer, "loaded_epoch", None)
        return epochs, epochs

    def card(self) -> dict[str, Any]:
        """The data-use card of a run that has ended.

        - `kind`: of the method (`data_use.METHOD_KINDS`), or `extra text` if it is inductive and
          has DATASET.SENTENCES; None for a trainer of another project
        - `fit`: the records of the images behind the prompts that it tests; None if that is not
          known
        - `choose`: `choices`
        - `test`: the record of the tested images, with `evaluations`, how many tests of them ended
          in this output folder; None without a test
        - `method`: of a method over another one, the names of both
        - `settings`: those that are not defaults, by their source
        """
        cfg = self.spec.cfg
        trainer = self.trainer
        test = self.test_phase()
        phases = None if self.earlier is None else list(self.earlier)
        if phases is not None and not self.spec.args.eval_only and is_trainable(trainer):
            data = trainer.dm
            phases.append(data_use.fit_phase(cfg, title(cfg), data.dataset, data.num_classes))
        fit = to_json(phases)
        kind = getattr(self.method, "kind", None)
        used = [*(fit or ()), *filter(None, [test])]
        if kind == "inductive" and any("sentences" in phase for phase in used):
            kind = "extra text"
        card = {"kind": kind, "fit": fit, "choose": to_json(self.choices), "test": test}
        if name := self.combined_name():
            card["method"] = name
        return card | {"settings": self.settings_by_source()}

    def combined_name(self) -> str:
        """The name of a method with the one whose answers it reads; empty without one."""
        method: Any = self.method
        return method.combined_name if getattr(method, "base", None) else ""

    def test_phase(self) -> dict[str, Any] | None:
        """The record of the tested images; None without a test."""
        cfg = self.spec.cfg
        if not self.trainer.evaluator.results:
            return None
        split, items = tested_images(cfg, self.trainer)
        facts = data_use.list_facts(cfg, title(cfg), split, items)
        facts |= data_use.text_facts(cfg)
        facts |= {"labels": len(items), "class_names": self.trainer.dm.num_classes}
        facts["evaluations"] = tests_of(Path(cfg.OUTPUT_DIR), facts["sha256"])
        return Phase(**facts).to_json()

    def settings_by_source(self) -> dict[str, list[str]]:
        """The settings that are not defaults, by what has set them."""
        sources: dict[str, list[str]] = {}
        for key, origin in sorted(self.spec.sources.items()):
            sources.setdefault(origin, []).append(key)
        chosen = [choice.what for choice in self.choices or ()]
        keys = [what for what in chosen if what not in ("epoch", data_use.TRAINING)]
        if keys:
            sources["a choice"] = list(dict.fromkeys(keys))
        return sources

    def hardware(self) -> dict[str, str | None]:
        """The arithmetic of the run, and its device."""
        device = self.trainer.device
        precision = usable(self.method.settings.PREC, device) if self.method else None
        name = f"cpu ({platform.machine()})"
        if device.type == "cuda":
            name = torch.cuda.get_device_name(device)
        return {"precision": precision, "device": name}

    def to_json(self, observed: dict[str, Any]) -> str:
        """The content of results.json of a run that has ended, with what observers add; null: it
        was not measured.
        """
        cfg = self.spec.cfg
        trainer = self.trainer
        settings = flatten(cfg)
        measured = trainer.evaluator.results
        content = {key: settings[setting] for key, setting in RECORDED.items()}
        if name := self.combined_name():
            content["method"] = name
        content["dataset"] = title(cfg)
        content["split"] = trainer.test_split
        content["n_test"] = trainer.n_test if measured else None
        for key in MEASURES:
            value = measured.get(key, math.nan)
            content[key] = value if math.isfinite(value) else None
        content["train_seconds"] = trainer.train_seconds or None
        content["test_seconds"] = trainer.test_seconds if measured else None
        content["epochs"], content["tested_epoch"] = self.epochs()
        if self.method and hasattr(self.method, "loaded_sha256"):
            content["checkpoint_sha256"] = self.method.loaded_sha256
        content["data_use"] = self.card()
        if stream := streams.facts(cfg):
            content["stream"] = stream
        content |= observed
        if cfg.MODEL.PLUGIN_SHA256:
            content["plugin_sha256"] = cfg.MODEL.PLUGIN_SHA256
        content |= self.hardware()
        content |= made()
        content["versions"] = versions()
        return json.dumps(content, indent=1) + "\n"


def to_json(records: list[Any] | None) -> list[dict] | None:
    return None if records is None else [record.to_json() for record in records]


def is_trainable(trainer: Any) -> bool:
    """Whether there is anything to train: zero-shot CLIP has nothing."""
    return bool(trainer.get_model_names())


def versions() -> dict[str, str]:
    """Of Python and of the libraries that the results depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "open_clip": open_clip.__version__,
    }


def environment() -> dict[str, str]:
    """The facts that a bug report needs."""
    facts = versions()
    facts["numpy"] = np.__version__
    facts["Pillow"] = PIL.__version__
    facts["system"] = f"{platform.system()} {platform.release()} ({platform.machine()})"
    capability = torch.backends.cpu.get_cpu_capability()
    facts["processor"] = f"{capability}, {torch.get_num_threads()} threads"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    libraries = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    facts["GPU"] = f"{', '.join(gpus) or 'none'} ({libraries})"
    return facts


def unused_gpu() -> str:
    """Why torch does not use an NVIDIA GPU of this machine, in its own words; empty without one, or
    if it is hidden.
    """
    if (
        torch.cuda.is_available()
        or os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
        or not DRIVER.is_file()
    ):
        return ""
    try:
        torch.cuda.init()
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # a driver too old, or a build of torch for CPUs
        return str(error).split(". ")[0].splitlines()[0]
    return "no reason is known"


def tested_images(cfg: Any, trainer: Any) -> tuple[str, list]:
    """The split of the last test, and its images: in the order of the dataset's list, also if a
    method has another.
    """
    split = trainer.test_split
    read_items = images_of(trainer, split)
    listed = images_of(trainer.dm, split)
    return split, listed if set(map(id, listed)) == set(map(id, read_items)) else read_items


def images_of(owner: Any, split: str) -> list:
    """The images of a split in the order in which a trainer, or its data manager, reads them."""
    return (owner.val_loader if split == "val" else owner.test_loader).dataset.data_source


def note_test(cfg: CfgNode, trainer: Any, results: dict[str, float]) -> None:
    """Add a test to the list of all tests in the output folder, those of earlier starts among
    them.
    """
    split, items = tested_images(cfg, trainer)
    sha256 = data_use.list_digest(items, cfg.DATASET.ROOT)
    test = {"date": made()["date"], "split": split, "images": len(items), "sha256": sha256}
    file = Path(cfg.OUTPUT_DIR, TESTS)
    # By the end of a process that wrote
    is_torn = file.is_file() and not file.read_bytes().endswith(b"\n")
    line = json.dumps(test | {"accuracy": next(iter(results.values()))})
    with open(file, "a", encoding="utf-8") as lines:
        if is_torn:
            lines.write("\n")
        lines.write(line + "\n")


def tests_of(folder: Path, sha256: str) -> int:
    """How many tests of the images with this checksum have ended in an output folder."""
    file = folder / TESTS
    if not file.is_file():
        return 0
    with open(file, encoding="utf-8", errors="replace") as lines:
        return sum(
            f'"sha256": "{sha256}"' in line
            for line, _ in zip(lines, range(MOST_TESTS), strict=False)
        )
