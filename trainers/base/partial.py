"""The results of a test that is not finished, so that a run that was killed resumes inside of it."""

import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from clip.digest import digest
from common.files import replacing

FOLDER = "partial_test"  # in the output folder of a run
STATE = "state"
SECONDS = 20  # between two times that results are written


class PartialTest:
    """Logits of the first images of a test, in files of some seconds' work each, and the state after them.

    The state is written last and says how many images count, so a process may end between any two files. The files
    together are as large as all logits of the test; the run deletes them once it has written its results. Files with
    another `key`, a checksum of everything that the logits depend on, are of another test.
    """

    def __init__(self, run: Path, key: str):
        self.folder, self.key = run / FOLDER, key
        self.done = 0  # images in the files
        self.rows: list[Tensor] = []  # of images that are not
        self.written = time.monotonic()

    def read(self, state: dict[str, Tensor]) -> list[Tensor]:
        """The logits (classes,) of each image that is done, on the CPU, and the state after them.

        Args:
            state: that of the beginning; it becomes the one after these images. If there is none, or the files are
                damaged or of another test, it stays.
        """
        if self.file(STATE).is_file():
            try:
                return self.read_files(state)
            except (OSError, SafetensorError, ValueError, KeyError) as error:
                print(f"The partial results in {self.folder} are not used ({error})")
        for file in self.folder.glob("*.safetensors"):
            file.unlink()
        return []

    def read_files(self, state: dict[str, Tensor]) -> list[Tensor]:
        done, found = self.tensors(STATE)
        rows: list[Tensor] = []
        while len(rows) < done:
            first, part = self.tensors(f"{len(rows):08}")
            if first != len(rows) or not len(part["logits"]):
                raise ValueError("files do not follow one another")
            rows += part["logits"]
        before, now = ({name: (t.shape, t.dtype) for name, t in each.items()} for each in (found, state))
        if len(rows) != done or before != now:
            raise ValueError("the state does not fit")
        for name, tensor in found.items():
            state[name].copy_(tensor)
        self.done = done
        print(f"Resuming the test after {done:,} images")
        return rows

    def add(self, logits: Tensor, state: dict[str, Tensor]) -> None:
        """Add the logits (classes,) of the next image, and what it leaves to those after it."""
        self.rows.append(logits.cpu())
        if time.monotonic() - self.written < SECONDS:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write(f"{self.done:08}", self.done, {"logits": torch.stack(self.rows)})
        self.done += len(self.rows)
        self.write(STATE, self.done, state)
        self.rows, self.written = [], time.monotonic()

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def write(self, name: str, number: int, tensors: dict[str, Tensor]) -> None:
        with replacing(self.file(name)) as partial:
            facts = {"key": self.key, "number": str(number), "sha256": checksum(number, tensors)}
            partial.write_bytes(save({key: tensor.cpu() for key, tensor in tensors.items()}, facts))

    def tensors(self, name: str) -> tuple[int, dict[str, Tensor]]:
        """The number and the tensors of a file; ValueError if it is damaged or of another test."""
        with safe_open(self.file(name), "pt") as content:
            facts = content.metadata() or {}
            if facts.get("key") != self.key:
                raise ValueError("they are of other settings or images")
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
        number = int(facts["number"])
        if facts.get("sha256") != checksum(number, tensors):
            raise ValueError("they are damaged")
        return number, tensors


def checksum(number: int, tensors: dict[str, Tensor]) -> str:
    """The SHA-256 of what a file says."""
    return digest({f"{number} {name}": tensor for name, tensor in sorted(tensors.items())})
