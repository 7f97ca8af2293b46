"""The results of a test that is not finished, so that a run that was killed resumes inside of
it.
"""

import hashlib
import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from clip.digest import add_tensors, as_bytes
from common.files import flush_to_disk, write_bytes

FOLDER = "partial_test"  # in the output folder of a run
LOGITS = "logits"  # (images, classes), fp32
STATE = "state.safetensors"
SECONDS = 20  # between two times that results are written


class PartialTest:
    """The logits of the first images of a test in one file, and the state after them in another.

    The state is written after the logits and says how many images count, so a process may end
    between the two. The run deletes the folder once it has written its results. Files with another
    `key`, a checksum of everything that the logits depend on, are of another test.
    """

    def __init__(self, run: Path, key: str):
        self.folder = run / FOLDER
        self.key = key
        self.start()

    def start(self) -> None:
        self.done = 0  # images in the files
        self.rows: list[Tensor] = []  # of images that are not
        self.digest = hashlib.sha256(self.key.encode())  # of the file of logits
        self.written = time.monotonic()

    def read(self, state: dict[str, Tensor]) -> list[Tensor]:
        """The logits (classes,) of each image that is done, on the CPU, and the state after them.

        Args:
            state: that of the beginning; it becomes the one after these images. If there is none,
                or the files are damaged or of another test, it stays.
        """
        if (self.folder / STATE).is_file() and (self.folder / LOGITS).is_file():
            try:
                return self.read_files(state)
            except (OSError, SafetensorError, ValueError, KeyError) as error:
                print(f"The partial results in {self.folder} are not used ({error})")
                self.start()
        return []

    def read_files(self, state: dict[str, Tensor]) -> list[Tensor]:
        with safe_open(self.folder / STATE, "pt") as content:
            facts = content.metadata() or {}
            names = content.keys()
            saved = {name: content.get_tensor(name) for name in names}
        done = int(facts["images"])
        classes = int(facts["classes"])
        logits = bytearray((self.folder / LOGITS).read_bytes()[: 4 * done * classes])
        self.digest.update(logits)
        if (
            facts["sha256"] != self.checksum(saved)
            or len(logits) != 4 * done * classes
            or saved.keys() != state.keys()
        ):
            raise ValueError("they are damaged, or of other settings or images")
        for name, tensor in saved.items():
            state[name].copy_(tensor)
        self.done = done
        print(f"Resuming the test after {done:,} images")
        return list(torch.frombuffer(logits, dtype=torch.float32).reshape(done, classes))

    def add(self, logits: Tensor, state: dict[str, Tensor]) -> None:
        """Add the logits (classes,) of the next image, fp32, and what it leaves to those after
        it.
        """
        self.rows.append(logits.cpu())
        if time.monotonic() - self.written < SECONDS:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        new = bytes(as_bytes(torch.stack(self.rows)))
        with open(self.folder / LOGITS, "r+b" if self.done else "wb") as file:
            file.seek(4 * self.done * len(logits))
            file.write(new)
        flush_to_disk(self.folder / LOGITS)
        self.digest.update(new)
        self.done += len(self.rows)
        tensors = {name: tensor.cpu() for name, tensor in state.items()}
        facts = {"images": str(self.done), "classes": str(len(logits))}
        write_bytes(self.folder / STATE, save(tensors, facts | {"sha256": self.checksum(tensors)}))
        self.rows = []
        self.written = time.monotonic()

    def checksum(self, state: dict[str, Tensor]) -> str:
        """The SHA-256 of the key, the logits so far and this state."""
        digest = self.digest.copy()
        add_tensors(digest, dict(sorted(state.items())))
        return digest.hexdigest()
