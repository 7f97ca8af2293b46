"""JSON over HTTP (`python tools/serve.py MODEL --api`)."""

import asyncio
from base64 import b64decode
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from dassl.utils.images import MAX_BYTES
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from common.errors import UsageError
from common.names import printable
from common.version import __version__

from .limits import LARGEST_REQUEST, Gate
from .service import MOST, Answer, Fault, Question, Service

LARGEST = MAX_BYTES * 4 // 3 + LARGEST_REQUEST  # bytes of a request: base64 is longer than the file
MARKS = 2 * MOST + 10  # commas and brackets of the most images, each with its "data:...,"
LONG = 1 << 20  # bytes of a body from which on one is parsed at a time: it takes memory of its own


def fault(status: int, text: object, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(as_error(text), status, headers)


def as_error(text: object) -> Fault:
    """One line for a client."""
    line = " ".join(str(text).replace("in memory", "`image`").split())
    return {"error": printable(line)[:500]}


def answer_of(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that cannot be served."""
    if isinstance(error, HTTPException):
        return fault(error.status_code, error.detail, error.headers)
    if isinstance(error, UsageError):
        return fault(422, error)
    if isinstance(error, RequestValidationError):  # FastAPI's own answer repeats what was sent
        first = error.errors()[0]
        return fault(422, f"{first['loc'][-1]}: {first['msg']}")
    if isinstance(error, ClientDisconnect):
        return fault(400, "the request was cut off")
    return fault(500, "the server has a fault: its log says more")


def no_route(request: Request, error: HTTPException) -> JSONResponse:
    where = f"{request.method} {request.url.path}: {error.detail}"
    text = f"{where}: POST an image to /predict, or GET /model, /health or /openapi.json"
    return fault(error.status_code, text, error.headers)


FAULTS: dict[Any, Any] = dict.fromkeys(
    (HTTPException, UsageError, RequestValidationError, ClientDisconnect, Exception), answer_of
)


async def question_of(
    request: Request,
    turn: asyncio.Semaphore,
) -> tuple[list[bytes], bool, Question]:
    """The image files of a request to /predict, whether they are a list, and the options.

    Raises:
        UsageError: there is no image, there are too many, or a value is wrong.
        HTTPException: it is neither JSON nor a form, or the form is damaged.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            body = await body_of(request)
            async with turn if len(body) > LONG else nullcontext():
                return await asyncio.to_thread(from_json, body)
        if kind == "multipart/form-data":
            async with request.form(max_files=MOST, max_fields=len(Question.model_fields)) as form:
                given = form.getlist("image")
                files = [await file.read() for file in given if isinstance(file, UploadFile)]
                if not files:
                    raise UsageError("the form has no file `image`")
                return files, len(files) > 1, Question.model_validate({**form, "image": ""})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = first["loc"][0] if first["loc"] else "the body"
        raise UsageError(f"{place}: {first['msg']}") from error
    raise HTTPException(415, "send application/json, or multipart/form-data")


async def body_of(request: Request) -> bytearray:
    """The JSON text of a request; UsageError for one of many values."""
    body = bytearray()
    marks = 0
    async for part in request.stream():
        if marks <= MARKS:  # the rest of a refused text is not kept
            marks += sum(part.count(mark) for mark in b",[{")
            body += part
    if marks > MARKS:
        fault = "the body has too many values"
        raise UsageError(f"{fault}: send 1 to {MOST} images in a request")
    return body


def from_json(body: bytearray) -> tuple[list[bytes], bool, Question]:
    """`question_of` a JSON text of few values: the list of the faults of many could take minutes.

    Raises:
        UsageError: there are too many images, or one is not base64.
        ValidationError: it is not JSON, or not a `Question`.
    """
    question = Question.model_validate_json(body)
    several = isinstance(question.image, list)
    images = question.image if isinstance(question.image, list) else [question.image]
    if not 0 < len(images) <= MOST:
        raise UsageError(f"image: send 1 to {MOST} images in a request")
    try:
        texts = [image[image.find(",", 0, 99) + 1 :] for image in images]  # after data:...,
        files = [b64decode(text, validate=True) for text in texts]
    except ValueError as error:  # binascii.Error, or a character that is not ASCII
        raise UsageError("image: it is not base64") from error
    question.image = ""
    return files, several, question


def application(service: Service) -> FastAPI:
    """The routes. Nothing is loaded from another server: the OpenAPI text is there without its
    page.
    """
    app = FastAPI(
        title="Prompted CLIP",
        version=__version__,
        lifespan=service.running,
        docs_url=None,
        redoc_url=None,
        exception_handlers=FAULTS | dict.fromkeys((404, 405), no_route),
    )
    app.add_middleware(Gate, largest=lambda _: LARGEST, answer=fault)
    turn = asyncio.Semaphore()

    @app.post("/predict", response_model=Answer | list[Answer | Fault], **descriptions())
    async def predict(request: Request) -> Any:
        """The most probable classes of an image; of several, of each one, or why there are none."""
        files, several, question = await question_of(request, turn)
        results = await service.answers_of(files, question)
        if not several and isinstance(results[0], UsageError):
            raise results[0]
        answers = [
            as_error(result) if isinstance(result, UsageError) else result for result in results
        ]
        return JSONResponse(answers if several else answers[0])  # which FastAPI need not check

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """The model's class names, training and test, and what its calibration promises."""
        return service.about()

    return app


def descriptions() -> dict[str, Any]:
    """The OpenAPI text of /predict besides its answers: the body and the faults."""
    schema = Question.model_json_schema()
    files = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": MOST,
        "description": "the image file; or several, which a list in the same order answers",
    }
    properties = schema["properties"]
    number, _null = properties["sets"]["anyOf"]  # a form has no null
    share = number | {"description": properties["sets"]["description"]}
    form = schema | {"properties": properties | {"image": files, "sets": share}}
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}
    why = {"description": 'Why there is no answer, in one line: {"error": "..."}'}
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
        "responses": dict.fromkeys((400, 408, 411, 413, 415, 422, 503), why),
    }
