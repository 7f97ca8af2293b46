"""JSON over HTTP (`python tools/serve.py MODEL --api`): images of concurrent requests are classified in batches.

Each image waits twice, to be read and to be classified, in turns by address: whoever has sent many waits behind whoever
has sent one. The limits of a visitor are those of the page (`limits`, `reading`).
"""

import asyncio
import binascii
import socket
from base64 import b64decode
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
import uvicorn
from dassl.utils.images import MAX_BYTES
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads that of typing from Python 3.12 on

from common.errors import UsageError
from common.names import printable
from common.version import __version__

from ..classifier import BATCH, PromptedClassifier
from ..images import in_set
from ..predict import as_objects
from .limits import LARGEST_REQUEST, MOST_OF_ADDRESS, SLOWEST
from .reading import PIXELS, Reader

READERS = 3  # processes that read images; one address has at most two of them
OF_CPU = 8  # images of a batch on a CPU, where larger ones are not faster and let others wait
LARGEST = MAX_BYTES * 4 // 3 + LARGEST_REQUEST  # bytes of a request: base64 is longer than the file
BYTES_OF_ADDRESS, ALL_BYTES = 4 * LARGEST, 1 << 30  # of requests that are not answered yet
LEAST = BYTES_OF_ADDRESS // MOST_OF_ADDRESS  # bytes that a request counts at least
GRACE = 5  # seconds for open requests when the server ends


class Question(BaseModel, extra="forbid"):
    """The body of /predict as JSON; as a form, `image` is a file."""

    image: str = Field(description="the image file in base64")
    top_k: int = Field(5, ge=1, le=100_000, description="how many of the most probable classes to answer")
    sets: float | None = Field(None, gt=0, lt=1, description="share of images whose class the set has, such as 0.9")


Named = TypedDict("Named", {"class": str, "probability": float})


class Answer(TypedDict):
    """What the model says of an image."""

    top: list[Named]  # the most probable class first
    unknown: bool | None  # the model is too unsure; null: no calibration says it
    set: list[Named] | None  # if `sets` is given


@dataclass
class Job:
    """An image on its way: a file, then pixels (1, [views,] 3, H, W), in the end the logits (1, classes)."""

    address: str
    file: Path
    done: "asyncio.Future[Tensor]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    pixels: Tensor | None = None

    def end(self, found: Tensor | Exception) -> None:
        """End with the logits or an error, unless the request has been given up."""
        if self.done.done():
            return
        if isinstance(found, Tensor):
            self.done.set_result(found)
        else:
            self.done.set_exception(found)


class Line:
    """Jobs that wait, in turns by address."""

    def __init__(self) -> None:
        self.jobs: dict[str, deque[Job]] = {}  # the address whose turn is next comes first
        self.change = asyncio.Event()

    def add(self, job: Job) -> None:
        self.jobs.setdefault(job.address, deque()).append(job)
        self.change.set()

    async def take(self, most: int, may: Callable[[str], bool] = lambda address: True) -> list[Job]:
        """Up to `most` jobs of addresses that `may`; it waits for the first one."""
        while not (taken := list(self.next_jobs(most, may))):
            self.change.clear()
            await self.change.wait()
        return taken

    def next_jobs(self, most: int, may: Callable[[str], bool]) -> Iterator[Job]:
        for _ in range(most):
            address = next(filter(may, self.jobs), None)
            if address is None:
                return
            jobs = self.jobs.pop(address)
            yield jobs.popleft()
            if jobs:
                self.jobs[address] = jobs


class Service:
    """Reads and classifies the images of all requests.

    Args:
        uploads: a folder for images until they are read.
        names: class names instead of the model's; None: its own.
        coverage: the share of a set's images for requests that do not say it; None: no set.
    """

    def __init__(
        self,
        classifier: PromptedClassifier,
        uploads: Path,
        names: list[str] | None = None,
        coverage: float | None = None,
    ):
        self.classifier, self.uploads, self.names, self.coverage = classifier, uploads, names, coverage
        self.most = max(1, (BATCH if classifier.device.type == "cuda" else OF_CPU) // classifier.views)
        try:
            classifier.check_asked(True, class_names=names)
            self.says_unknown = True
        except UsageError:  # without a calibration, or with one that promises no error
            self.says_unknown = False

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Within it, jobs are worked on."""
        self.to_read, self.to_classify, self.read_now = Line(), Line(), Counter[str]()
        readers = [Reader() for _ in range(READERS)]
        # Torch starts threads for each thread that computes: a reader needs none.
        threads = [ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) for _ in readers]
        tasks = [asyncio.create_task(self.read(*pair)) for pair in zip(readers, threads, strict=True)]
        tasks.append(asyncio.create_task(self.classify(ThreadPoolExecutor(1))))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for reader in readers:
                reader.close()

    async def read(self, reader: Reader, thread: Executor) -> None:
        """Read one image after another."""
        while True:
            (job,) = await self.to_read.take(1, lambda address: self.read_now[address] < READERS - 1)
            self.read_now[job.address] += 1
            try:
                work = partial(self.classifier.pixels, [job.file], reader.read)
                job.pixels = await asyncio.get_running_loop().run_in_executor(thread, work)
                self.to_classify.add(job)
            except Exception as error:  # noqa: BLE001 - the request answers it
                job.end(error)
            finally:
                self.read_now -= Counter([job.address])  # which leaves no zeros
                self.to_read.change.set()

    async def classify(self, thread: Executor) -> None:
        """Classify whatever has been read meanwhile, one batch after another."""
        while True:
            jobs = await self.to_classify.take(self.most)
            try:
                logits = await asyncio.get_running_loop().run_in_executor(thread, self.logits, jobs)
                found: Sequence[Tensor | Exception] = logits.split(1)
            except Exception as error:  # noqa: BLE001 - the requests answer it
                found = [error] * len(jobs)
            for job, row in zip(jobs, found, strict=True):
                job.end(row)

    @torch.no_grad()
    def logits(self, jobs: Sequence[Job]) -> Tensor:
        return self.classifier.logits(torch.cat([job.pixels for job in jobs if job.pixels is not None]), self.names)

    async def answer(self, address: str, content: bytes, question: Question) -> Answer:
        """The answer for an image file's content; UsageError if it cannot be read or no such set is promised."""
        coverage = question.sets if question.sets is not None else self.coverage
        with NamedTemporaryFile(dir=self.uploads) as file:
            await asyncio.to_thread(file.write, content)
            file.flush()
            job = Job(address, Path(file.name))
            try:
                self.classifier.check_asked(False, coverage, self.names)
                self.to_read.add(job)
                logits = await job.done
            except UsageError as error:
                text = str(error).replace(self.classifier.source, "the model").replace(repr(file.name), "`image`")
                raise UsageError(text) from error
        (row,) = self.classifier.repaired(logits, self.names).softmax(dim=-1)
        classes = self.names or self.classifier.class_names
        values, indices = row.topk(min(question.top_k, len(classes)))
        top: Any = as_objects([(classes[index], value) for index, value in zip(indices, values.tolist(), strict=True)])
        unknown = bool(self.classifier.unknown(logits)) if self.says_unknown else None
        if coverage is None:
            return Answer(top=top, unknown=unknown, set=None)
        members: Any = in_set(self.classifier.sets(logits, coverage)[0], row, classes)
        named: Any = as_objects(members)
        return Answer(top=top, unknown=unknown, set=named)

    def about(self) -> dict[str, Any]:
        """The facts of the model for its users."""
        of, calibration = self.classifier.description, self.classifier.calibration
        return {
            "method": of.method,
            "dataset": of.dataset,
            "class_names": self.names or of.class_names,
            "training": of.training,
            "calibration": str(calibration) if calibration else None,
            "unknown": self.says_unknown,
            "largest_image": {"bytes": MAX_BYTES, "pixels": PIXELS},
            "version": __version__,
        }


class Gate:
    """ASGI middleware: refuses a request before its body is read, if it is too large or one of too many."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self.bytes = Counter[str]()  # of requests without an answer, by address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        address, headers = (scope["client"] or [""])[0], dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        size = int(length) if length.isdigit() and len(length) < 12 else LARGEST + 1
        if not length or b"transfer-encoding" in headers:  # chunks have any length, whatever the other says
            refusal = 411, "the length is missing"
        elif size > LARGEST:
            refusal = 413, f"the request has more than {LARGEST:,} bytes"
        elif self.bytes[address] + (size := max(size, LEAST)) > BYTES_OF_ADDRESS:
            refusal = 429, "too many of your requests wait: send this one again later"
        elif sum(self.bytes.values()) + size > ALL_BYTES:
            refusal = 503, "too many requests wait: send this one again later"
        else:
            self.bytes[address] += size
            try:
                await asyncio.wait_for(self.app(scope, receive, send), SLOWEST)
                return
            except asyncio.TimeoutError:
                refusal = 408, "the request takes too long"
            finally:
                self.bytes -= Counter({address: size})  # which leaves no zeros
        await fault(*refusal)(scope, receive, send)


def fault(status: int, text: object) -> JSONResponse:
    return JSONResponse({"error": printable(" ".join(str(text).split()))[:500]}, status)


async def question_of(request: Request) -> tuple[bytes, Question]:
    """The image file and the options of a request to /predict.

    Raises:
        UsageError: there is no image, or a value is wrong.
        HTTPException: it is neither JSON nor a form, or the form is damaged.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            question = Question.model_validate_json(await request.body())
            return b64decode(question.image, validate=True), question
        if kind == "multipart/form-data":
            async with request.form(max_files=1, max_fields=len(Question.model_fields)) as form:
                image = form.get("image")
                if not isinstance(image, UploadFile):
                    raise UsageError("the form has no file `image`")
                return await image.read(), Question.model_validate({**form, "image": ""})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UsageError(f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}") from error
    except binascii.Error as error:
        raise UsageError("image: it is not base64") from error
    raise HTTPException(415, "send application/json, or multipart/form-data")


def application(service: Service) -> FastAPI:
    """The routes. Nothing is loaded from another server: the OpenAPI text is there without its page."""
    app = FastAPI(title="Prompted CLIP", version=__version__, lifespan=service.running, docs_url=None, redoc_url=None)
    app.add_middleware(Gate)
    app.add_exception_handler(HTTPException, lambda _, error: fault(error.status_code, error.detail))  # type: ignore
    app.add_exception_handler(UsageError, lambda _, error: fault(422, error))
    app.add_exception_handler(ClientDisconnect, lambda _, error: fault(400, "the request was cut off"))
    app.add_exception_handler(Exception, lambda _, error: fault(500, "the server has a fault: its log says more"))
    schema = Question.model_json_schema()
    form = schema | {"properties": schema["properties"] | {"image": {"type": "string", "format": "binary"}}}
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}
    why = {"description": 'Why there is no answer, in one line: {"error": "..."}'}
    faults: dict[int | str, Any] = dict.fromkeys((408, 411, 413, 415, 422, 429, 503), why)

    @app.post("/predict", responses=faults, openapi_extra={"requestBody": {"required": True, "content": content}})
    async def predict(request: Request) -> Answer:
        """The most probable classes of an image."""
        file, question = await question_of(request)
        return await service.answer(request.client.host if request.client else "", file, question)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """The model's class names, how it was trained and tested, and what its calibration promises."""
        return service.about()

    return app


def serve(service: Service, host: str, port: int) -> None:
    """Answer requests until Ctrl-C or SIGTERM; UsageError if the host or the port cannot be used."""
    try:
        listening = socket.create_server((host, port), backlog=1024)
    except OSError as error:
        what = f"cannot serve at {host}:{port} ({error.strerror or 'it is in use'})"
        raise UsageError(what, "choose another --port, or check --host") from error
    config = uvicorn.Config(
        application(service),
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    print(f"POST images to http://{host}:{port}/predict (OpenAPI: /openapi.json). Ctrl-C ends the server.", flush=True)
    with listening, suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([listening])
    print("\nStopped.")
