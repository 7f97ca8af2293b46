"""Answers for the images of concurrent requests, in batches.

Each image waits twice, to be read and to be classified, in turns by address: whoever has sent many, in one request or
in several, waits behind whoever has sent one.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from threading import Condition, Semaphore, Thread
from time import monotonic
from typing import Any

import torch
from dassl.utils.images import MAX_BYTES
from pydantic import BaseModel, Field
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads that of typing from Python 3.12 on

from common.errors import UsageError
from common.version import __version__

from ..classifier import BATCH, PromptedClassifier
from ..images import in_set
from ..predict import as_objects
from .reading import PIXELS, Readers

READERS = 3  # processes that read images; one address has at most two of them
MOST = 100  # images of a request
FEW, SEVERAL = 4, 8  # images of a batch that a thread waits for while others compute: of slow and of fast models
SHORT = 1.0  # seconds of a larger batch: others wait meanwhile


class Question(BaseModel, extra="forbid"):
    """The body of /predict as JSON; as a form, each `image` is a file."""

    image: str | list[str] = Field(
        description=f"the image file in base64; or up to {MOST} as a list, which a list in the same order answers"
    )
    top_k: int = Field(5, ge=1, le=100_000, description="how many of the most probable classes to answer")
    sets: float | None = Field(None, gt=0, lt=1, description="share of images whose class the set has, such as 0.9")


Named = TypedDict("Named", {"class": str, "probability": float})


class Answer(TypedDict):
    """What the model says of an image."""

    top: list[Named]  # the most probable class first
    unknown: bool | None  # the model is too unsure; null: no calibration says it
    set: list[Named] | None  # if `sets` is given


class Fault(TypedDict):
    """Why there is no answer for one of several images."""

    error: str


@dataclass
class Job:
    """An image on its way: a file's content, then pixels (1, [views,] 3, H, W), in the end an answer or a fault."""

    address: str
    content: bytes
    question: Question
    done: "asyncio.Future[Answer | UsageError]"
    pixels: Tensor = field(default_factory=lambda: torch.empty(0))


class Line:
    """Jobs that wait, in turns by address. Several threads may take them.

    Args:
        most: jobs of one address that are taken and not done.
    """

    def __init__(self, most: float = inf):
        self.most = most
        self.jobs: dict[str, deque[Job]] = {}  # the address whose turn is next comes first
        self.taken = Counter[str]()  # jobs that are not done, by address
        self.change, self.open = Condition(), True

    def add(self, job: Job) -> None:
        with self.change:
            self.jobs.setdefault(job.address, deque()).append(job)
            self.change.notify_all()  # one thread alone may be one that waits for more jobs

    def take(self, most: int, few: int = 1) -> list[Job]:
        """Up to `most` jobs; it waits for `few`, or for the first one if no other is taken. None after the end."""
        with self.change:
            while self.open:
                if (not self.taken or self.waiting() >= few) and (jobs := list(self.next_jobs(most))):
                    return jobs
                self.change.wait()
            return []

    def next_jobs(self, number: int) -> Iterator[Job]:
        for _ in range(number):
            address = next((address for address in self.jobs if self.taken[address] < self.most), None)
            if address is None:
                return
            self.taken[address] += 1
            jobs = self.jobs.pop(address)
            yield jobs.popleft()
            if jobs:
                self.jobs[address] = jobs

    def waiting(self) -> int:
        return sum(map(len, self.jobs.values()))

    def done(self, jobs: Sequence[Job]) -> None:
        with self.change:
            self.taken -= Counter(job.address for job in jobs)  # which leaves no zeros

    def close(self) -> None:
        with self.change:
            self.open = False
            self.change.notify_all()


class Service:
    """Reads and classifies the images of all requests.

    Args:
        names: class names instead of the model's; None: its own.
        coverage: the share of a set's images for requests that do not say it; None: no set.
    """

    def __init__(self, classifier: PromptedClassifier, names: list[str] | None = None, coverage: float | None = None):
        self.classifier, self.names, self.coverage = classifier, names, coverage
        self.classes = names or classifier.class_names
        try:
            classifier.check_asked(True, class_names=names)
            self.says_unknown = True
        except UsageError:  # without a calibration, or with one that promises no error
            self.says_unknown = False

    @asynccontextmanager
    async def running(self, _: Any) -> AsyncIterator[None]:
        """Within it, jobs are worked on."""
        self.loop = asyncio.get_running_loop()
        self.to_read, self.to_classify, self.readers = Line(READERS - 1), Line(), Readers(READERS)
        threads = 1 if self.classifier.device.type == "cuda" else torch.get_num_threads()
        self.largest = max(1, BATCH // self.classifier.views)
        self.room = Semaphore((threads + 1) * self.largest)  # for images that are read and not classified
        for work in [self.read] * READERS + [partial(self.classify, threads)] * threads:
            Thread(target=work, daemon=True).start()
        try:
            yield
        finally:
            for part in (self.to_read, self.to_classify, self.readers):
                part.close()

    def read(self) -> None:
        """Read one image after another."""
        torch.set_num_threads(1)  # Torch starts threads for each thread that computes: this one needs none
        while jobs := self.to_read.take(1):
            (job,) = jobs
            self.room.acquire()
            try:
                if not job.done.done():
                    job.pixels = self.classifier.pixels([job.content], self.readers.read)
                    self.to_classify.add(job)
            except Exception as error:  # noqa: BLE001 - the request answers it
                self.finish(jobs, [error])
            if not len(job.pixels):
                self.room.release()
            self.to_read.done(jobs)

    def classify(self, threads: int) -> None:
        """Classify whatever has been read meanwhile, one batch of FEW images or of SHORT seconds after another.

        Several full batches in parallel are faster with one thread each. A single image has all threads.
        """
        few = most = min(FEW, self.largest)
        while jobs := self.to_classify.take(most, few):
            start = monotonic()
            torch.set_num_threads(threads if len(jobs) == 1 else 1)
            try:
                self.finish(jobs, list(self.answers(jobs)))
            except Exception as error:  # noqa: BLE001 - the requests answer it
                self.finish(jobs, [error] * len(jobs))
            self.to_classify.done(jobs)
            self.room.release(len(jobs))
            pace = len(jobs) / max(monotonic() - start, 1e-6)  # images a second
            most = min(max(FEW, int(SHORT * pace)), self.largest)
            few = min(SEVERAL, most)

    def finish(self, jobs: Sequence[Job], results: "Sequence[Answer | Exception]") -> None:
        """Give each job its answer or its fault in the thread of the requests. One call wakes it for all jobs."""

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
    def answers(self, jobs: Sequence[Job]) -> Iterator[Answer]:
        logits = self.classifier.logits(torch.cat([job.pixels for job in jobs]), self.names)
        probabilities = self.classifier.repaired(logits, self.names).softmax(dim=-1)
        unknown = self.classifier.unknown(logits).tolist() if self.says_unknown else [None] * len(jobs)
        for number, (job, row) in enumerate(zip(jobs, probabilities, strict=True)):
            values, indices = row.topk(min(job.question.top_k, len(self.classes)))
            pairs = zip(indices.tolist(), values.tolist(), strict=True)
            top: Any = as_objects([(self.classes[index], value) for index, value in pairs])
            answer = Answer(top=top, unknown=unknown[number], set=None)
            if (coverage := job.question.sets) is not None:
                (chosen,) = self.classifier.sets(logits[number : number + 1], coverage)
                members: Any = as_objects(in_set(chosen, row, self.classes) or [])
                answer["set"] = members
            yield answer

    async def answers_of(self, address: str, files: Sequence[bytes], question: Question) -> list[Answer | UsageError]:
        """The answer for each image file's content, or why it cannot be read; UsageError if no such set is promised."""
        if question.sets is None:
            question.sets = self.coverage
        try:
            self.classifier.check_asked(False, question.sets, self.names)
        except UsageError as error:
            raise self.without_source(error) from error
        jobs = [Job(address, content, question, self.loop.create_future()) for content in files]
        for job in jobs:
            self.to_read.add(job)
        results = await asyncio.gather(*(job.done for job in jobs))
        return [self.without_source(result) if isinstance(result, UsageError) else result for result in results]

    def without_source(self, error: UsageError) -> UsageError:
        """The error without the path of the model."""
        return UsageError(str(error).replace(self.classifier.source, "the model").replace("in memory", "`image`"))

    def about(self) -> dict[str, Any]:
        """The facts of the model for its users."""
        of, calibration = self.classifier.description, self.classifier.calibration
        return {
            "method": of.method,
            "dataset": of.dataset,
            "class_names": self.classes,
            "training": of.training,
            "calibration": str(calibration) if calibration else None,
            "unknown": self.says_unknown,
            "largest_image": {"bytes": MAX_BYTES, "pixels": PIXELS},
            "version": __version__,
        }
