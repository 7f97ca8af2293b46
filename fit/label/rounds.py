"""Rounds of labels: images wait, visitors label them, a fit learns from the labels and more images
are asked for.

The CSV file is the only state: an answer is on the disk before the visitor hears of it.
"""

import hashlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock, Thread
from typing import Any, NamedTuple

from common.errors import UsageError, check_name
from common.text import read_json
from inference.images import jpeg_of

from ..record import FILE
from .advice import advice
from .label_file import REASON, REASONS, Line, image_of, is_open, lines_of, write_lines

AHEAD = 3  # images of a visitor at a time: the browser loads the next ones
SIDE = 1400  # pixels of an image on the page, at most
DAMAGED = KeyError, TypeError, ValueError, AttributeError, ArithmeticError  # of a file of anyone


class Mark(NamedTuple):
    """The label and the reason in a line of the file; both are empty while the image waits."""

    label: str
    reason: str


class RoundPlan(NamedTuple):
    """The images, classes and files of the rounds.

    Attributes:
        file: the CSV file.
        names: of the classes.
        images: the paths of the pool; no other file is opened.
        size: images of a round.
        model: the folder of the fit.
        max_pixels: larger images are refused.
    """

    file: Path
    names: Sequence[str]
    images: Sequence[str]
    size: int
    model: Path
    max_pixels: int | None = None


class Rounds:
    """The labels that several visitors give at the same time.

    Args:
        fit: learns from the file; its UsageError is shown.
        ask: adds the next images to the file.
    """

    def __init__(self, plan: RoundPlan, fit: Callable[[], None], ask: Callable[[], None]):
        self.plan = plan
        self.work = {"fit": fit, "ask": ask}
        self.paths = {key_of(path): path for path in plan.images}
        self.visitors: dict[str, str] = {}  # the visitor of an image, by its key
        self.lock = Lock()
        self.reading = Lock()  # one image at a time: it may take much memory
        self.doing = ""
        self.fault = ""
        self.closed = False
        self.size = min(plan.size, len(lines_of(plan.file)))  # of this round
        self.advice = self.advise()

    def lines(self) -> dict[str, Line]:
        """The lines of the file by the keys of their images, in the order of the file."""
        file = self.plan.file
        return {key_of(image_of(line, file)): line for line in lines_of(file)}

    def state(self, visitor: str) -> dict[str, Any]:
        """The content of the page for a visitor."""
        with self.lock:
            lines = self.lines()
            waiting = [key for key, line in lines.items() if is_open(line)]
            images = [] if self.doing else self.images_for(visitor, waiting)
            labels = sum(bool(line["label"]) for line in lines.values())
            size = max(len(waiting), self.size)
            counts = {"left": len(waiting), "size": size, "labels": labels}
            said = {"doing": self.doing, "fault": self.fault, "advice": self.advice}
            return {"images": images, **counts, **said}

    def images_for(self, visitor: str, waiting: Sequence[str]) -> list[str]:
        """The keys of the next images of a visitor. At the end of a round those of others, too: a
        page that was closed has left them.
        """
        own = [key for key in waiting if self.visitors.get(key) == visitor]
        free = [key for key in waiting if key not in self.visitors]
        if not own and not free:
            free = list(waiting)
        chosen = {*own[:AHEAD], *free[: max(0, AHEAD - len(own))]}
        for key in chosen:
            self.visitors[key] = visitor
        return [key for key in waiting if key in chosen]

    def mark(self, key: str, before: Mark, after: Mark) -> None:
        """Write what a visitor says of an image; the same once more changes nothing.

        Raises:
            UsageError: the file has changed since the visitor saw it, or the label is not a class.
        """
        if after.label:
            check_name(after.label, self.plan.names, "class")
        if after.reason:
            check_name(after.reason, REASONS, "reason")
        with self.lock:
            if self.doing:
                raise UsageError("a fit is running", "label the next images")
            lines = self.lines()
            line = lines.get(key)
            if line is None:
                raise UsageError("this image is no longer in the file", "label the next one")
            now = Mark(line["label"], line.get(REASON, ""))
            if now not in (before, after):
                says = now.label or now.reason or "nothing"
                fault = f"somebody else has changed this image, which is now: {says}"
                raise UsageError(fault, "that stays, and yours is not written")
            if now != after:
                line |= {"label": after.label, REASON: after.reason}
                write_lines(self.plan.file, list(lines.values()))

    def picture(self, key: str) -> bytes:
        """An image of the pool as a JPEG.

        Raises:
            UsageError: it cannot be read, or is not in the pool.
        """
        if key not in self.paths:
            raise UsageError("there is no such image")
        try:
            with self.reading:
                return jpeg_of(self.paths[key], SIDE, self.plan.max_pixels)
        except UsageError as error:  # whose text has the path
            raise UsageError("this image cannot be read", "skip it") from error

    def next_round(self) -> None:
        """Fit and ask again, in another thread; nothing if that has begun.

        Raises:
            UsageError: images wait for a label.
        """
        with self.lock:
            if self.doing:
                return
            if any(is_open(line) for line in self.lines().values()):
                raise UsageError("images of this round wait for a label", "label or skip them")
            self.doing = "fit"
        Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        """A fit that fails does not keep more images from being asked for."""
        faults = []
        for name, work in self.work.items():
            if self.closed:
                return
            self.doing = name
            try:
                work()
            except UsageError as error:
                faults.append(str(error))
            except Exception:
                traceback.print_exc()
                faults.append("the server has a fault: its terminal says more")
        with self.lock:
            self.visitors.clear()
            self.size = sum(is_open(line) for line in self.lines().values())
            self.fault = "; ".join(faults)
            self.advice = self.advise()
            self.doing = ""

    def advise(self) -> list[str]:
        """The advice of the last fit; empty before the first."""
        record = self.plan.model / FILE
        if not record.is_file():
            return []
        try:
            content: Mapping[str, Any] = read_json(record)
            return advice(content, lines_of(self.plan.file))
        except DAMAGED:
            return []


def key_of(path: str) -> str:
    """The page's name of an image, whose path stays here."""
    return hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:24]
