"""Answers for the images of concurrent requests to the API and the page, in batches.

Each image waits twice, to be read and to be classified, in the order of the requests.
"""

import asyncio
import re
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from threading import Condition, Semaphore, Thread
from time import monotonic
from typing import Any

import torch
from dassl.utils.images import MAX_BYTES
from pydantic import BaseModel, Field
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads that of typing from Python 3.12 on

from clip import ClipError
from common.errors import UsageError
from common.version import __version__

from ..batches import read_batch
from ..classifier import PromptedClassifier
from ..images import BATCH
from .reading import PIXELS, Readers

READERS = 3  # processes that read images
MOST = 100  # images of a request
REMEMBERED = 32  # image files: the page asks for each again when its class names are edited
# Images of a batch that a thread waits for while others compute: of slow and of fast models
FEW = 4
SEVERAL = 8
SHORT = 1.0  # seconds of a larger batch: others wait meanwhile


class Question(BaseModel, extra="forbid"):
    """The body of /predict as JSON; as a form, each `image` is a file."""

    image: str | list[str] = Field(
        description=f"the image file in base64; or up to {MOST} as a list, which a list in the "
        "same order answers"
    )
    top_k: int = Field(
        5, ge=1, le=100_000, description="how many of the most probable classes to answer"
    )
    sets: float | None = Field(
        None, gt=0, lt=1, description="share of images whose class the set has, such as 0.9"
    )


Named = TypedDict("Named", {"class": str, "probability": float})


class Answer(TypedDict):
    """The answer of the model for an image."""

    top: list[Named]  # the most probable class first
    unknown: bool | None  # the model is too unsure; null: no calibration says it
    set: list[Named] | None  # if `sets` is given


class Fault(TypedDict):
    """Why there is no answer for one of several images."""

    error: str


Names = tuple[str, ...] | None  # class names instead of the models' own


@dataclass
class Job:
    """An image on its way: a file or its content, then pixels, in the end a result or a fault.

    Jobs of the same `work` and `names` are computed together.
    """

    image: bytes | Path
    done: asyncio.Future[Any]
    work: Callable[[Sequence["Job"], Names], Sequence[Any]]
    names: Names
    question: Question
    pixels: list[Tensor] = field(default_factory=list)  # (1, [views,] 3, H, W) of each model


class Line:
    """Jobs that wait. Several threads may take them."""

    def __init__(self) -> None:
        self.jobs = deque[Job]()
        self.taken = 0  # jobs that are not done
        self.change = Condition()
        self.open = True

    def add(self, job: Job) -> None:
        with self.change:
            self.jobs.append(job)
            self.change.notify_all()  # one thread alone may be one that waits for more jobs

    def take(self, most: int, few: int = 1) -> list[Job]:
        """Up to `most` jobs; it waits for `few`, or for the first one if no other is taken. An
        empty list after the end.
        """
        with self.change:
            while self.open:
                if len(self.jobs) >= (few if self.taken else 1):
                    jobs = [self.jobs.popleft() for _ in range(min(most, len(self.jobs)))]
                    self.taken += len(jobs)
                    return jobs
                self.change.wait()
            return []

    def done(self, jobs: Sequence[Job]) -> None:
        with self.change:
            self.taken -= len(jobs)

    def close(self) -> None:
        with self.change:
            self.open = False
            self.change.notify_all()


class Service:
    """Reads and classifies the images of all requests.

    Args:
        classifiers: one, or several that answer for the same class names.
        names: class names instead of the models'; None: their own.
        coverage: the share of a set's images for requests that do not say it; None: no set.
    """

    def __init__(
        self,
        classifiers: Sequence[PromptedClassifier],
        names: Sequence[str] | None = None,
        coverage: float | None = None,
    ):
        self.classifiers = classifiers
        self.coverage = coverage
        self.names: Names = tuple(names) if names else None
        self.remembered = lru_cache(REMEMBERED)(self.pixels)

    @asynccontextmanager
    async def running(self, _: Any) -> AsyncIterator[None]:
        """Within it, jobs are worked on."""
        self.loop = asyncio.get_running_loop()
        self.to_read = Line()
        self.to_classify = Line()
        self.readers = Readers(READERS)
        on_gpu = any(each.on_gpu for each in self.classifiers)
        threads = 1 if on_gpu else torch.get_num_threads()
        views = max(classifier.views for classifier in self.classifiers)
        self.largest = max(1, BATCH // views)
        # For images that are read and not classified
        self.room = Semaphore((threads + 1) * self.largest)
        for work in [self.read] * READERS + [partial(self.classify, threads)] * threads:
            Thread(target=work, daemon=True).start()
        try:
            yield
        finally:
            for part in (self.to_read, self.to_classify, self.readers):
                part.close()

    def read(self) -> None:
        """Read one image after another."""
        # Torch starts threads for each thread that computes: this one needs none
        torch.set_num_threads(1)
        while jobs := self.to_read.take(1):
            (job,) = jobs
            self.room.acquire()
            try:
                if not job.done.done():
                    is_file = isinstance(job.image, Path)
                    read = self.remembered if is_file else self.pixels
                    job.pixels = read(job.image)
                    self.to_classify.add(job)
            except Exception as error:
                self.finish(jobs, [error])
            if not job.pixels:
                self.room.release()

    def pixels(self, image: bytes | Path) -> list[Tensor]:
        """The image as each model wants it, read once; UsageError if it is not readable."""
        files: Any = [image]
        (fault,), pixels = read_batch(
            files, self.classifiers, content=lambda file: file, read=self.readers.read
        )
        if fault:
            raise UsageError(fault)
        return pixels

    def classify(self, threads: int) -> None:
        """Classify whatever has been read meanwhile, one batch of FEW images or of SHORT seconds
        after another.

        Several full batches in parallel are faster with one thread each. A single image has all
        threads.
        """
        most = min(FEW, self.largest)
        few = most
        line = self.to_classify
        while jobs := line.take(most, few):
            start = monotonic()
            torch.set_num_threads(threads if len(jobs) == 1 else 1)
            groups = defaultdict(list)
            for job in jobs:
                groups[job.work, job.names].append(job)
            for (work, names), group in groups.items():
                try:
                    self.finish(group, work(group, names))
                except Exception as error:
                    self.finish(group, [error] * len(group))
            line.done(jobs)
            self.room.release(len(jobs))
            pace = len(jobs) / max(monotonic() - start, 1e-6)  # images a second
            most = min(max(FEW, int(SHORT * pace)), self.largest)
            few = min(SEVERAL, most)

    def finish(self, jobs: Sequence[Job], results: Sequence[Any]) -> None:
        """Give each job its answer or its fault in the thread of the requests. One call wakes it
        for all jobs.
        """

        def give() -> None:
            for job, result in zip(jobs, results, strict=True):
                if job.done.done():  # the request has ended
                    continue
                if isinstance(result, Exception) and not isinstance(result, UsageError):
                    job.done.set_exception(result)
                else:
                    job.done.set_result(result)

        with suppress(RuntimeError):  # the server has ended
            self.loop.call_soon_threadsafe(give)

    @torch.no_grad()
    def answers(self, jobs: Sequence[Job], names: Names) -> list[list[Answer | UsageError]]:
        """For each job the answer of each model, or why it has none."""
        columns: list[list[Answer | UsageError]] = []
        for number, classifier in enumerate(self.classifiers):
            pixels = torch.cat([job.pixels[number] for job in jobs])
            try:
                columns.append(list(self.answers_by(classifier, pixels, jobs, names)))
            except (UsageError, ClipError) as error:
                columns.append([without_source(error, classifier)] * len(jobs))
        return [list(row) for row in zip(*columns, strict=True)]

    def answers_by(
        self,
        classifier: PromptedClassifier,
        pixels: Tensor,
        jobs: Sequence[Job],
        names: Names,
    ) -> Iterator[Any]:
        names = names or self.names
        others = None
        if names is not None and list(names) != classifier.class_names:
            others = list(dict.fromkeys(names))  # each once
        said = classifier.predict(pixels, others)
        unknown = says_unknown(classifier, others)
        for number, job in enumerate(jobs):
            coverage = job.question.sets if others is None else None
            asked = job.question.top_k, unknown, coverage
            yield from said[number : number + 1].answers(*asked)

    async def answers_of(
        self, files: Sequence[bytes], question: Question
    ) -> list[Answer | UsageError]:
        """The answer of the only model for each image file's content, or why it cannot be read.

        Raises:
            UsageError: no such set is promised.
        """
        (classifier,) = self.classifiers
        if question.sets is None:
            question.sets = self.coverage
        try:
            classifier.check_asked(False, question.sets, self.names)
        except UsageError as error:
            raise without_source(error, classifier) from error
        found = await self.results_of(files, self.answers, question)
        return [result if isinstance(result, UsageError) else result[0] for result in found]

    async def results_of(
        self,
        images: Sequence[bytes | Path],
        work: Callable[[Sequence[Job], Names], Sequence[Any]],
        question: Question,
        names: Names = None,
    ) -> list[Any]:
        """What `work` computes of each image, or a UsageError."""
        jobs = []
        for image in images:
            job = Job(image, self.loop.create_future(), work, names, question)
            jobs.append(job)
            self.to_read.add(job)
        return list(await asyncio.gather(*(job.done for job in jobs)))

    def about(self) -> dict[str, Any]:
        """The facts of the model for its users."""
        (classifier,) = self.classifiers
        of = classifier.description
        calibration = classifier.calibration
        return {
            "method": of.method,
            "dataset": of.dataset,
            "class_names": list(self.names or classifier.class_names),
            "training": of.training,
            "calibration": str(calibration) if calibration else None,
            "unknown": says_unknown(classifier, self.names),
            "largest_image": {"bytes": MAX_BYTES, "pixels": PIXELS},
            "version": __version__,
        }


def says_unknown(classifier: PromptedClassifier, names: Sequence[str] | None) -> bool:
    """Whether the model can say which images it had better not answer."""
    try:
        classifier.check_asked(True, class_names=names)
    except UsageError:  # without a calibration, or with one that promises no error
        return False
    return True


def without_source(error: Exception, classifier: PromptedClassifier) -> UsageError:
    """The error without the path of the model."""
    path = rf"(?<!\w){re.escape(classifier.source)}(?!\w)"  # which may be one letter
    return UsageError(re.sub(path, "the model", str(error)))
