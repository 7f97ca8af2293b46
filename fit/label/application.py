"""The page to label on, over HTTP."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

from common.names import LONGEST
from common.pages import STYLE
from inference.serving.api import FAULTS, fault
from inference.serving.limits import Gate

from .rounds import Mark, Rounds

LARGEST = 1 << 14  # bytes of a request
HEADERS = {
    # Nothing from another server, nothing inside the text of the page, and no page around it
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
Short = Annotated[str, Field(max_length=64)]
Answer = Callable[[Request], Awaitable[Response]]
Text = Annotated[str, Field(max_length=LONGEST)]


class Given(BaseModel, extra="forbid"):
    """A visitor's answer for an image, and the earlier one: each a label and a reason."""

    visitor: Short
    key: Short
    before: tuple[Text, Text]
    after: tuple[Text, Text]


def application(rounds: Rounds) -> FastAPI:
    """The routes."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, exception_handlers=FAULTS)
    app.add_middleware(Gate, largest=lambda _: LARGEST, answer=fault)

    @app.middleware("http")
    async def guard(request: Request, call_next: Answer) -> Response:
        if not is_own(request.headers, request.url.path):
            return fault(403, "this comes from another site")
        response = await call_next(request)
        response.headers.update({**HEADERS, **response.headers})
        return response

    @app.get("/classes")
    def classes() -> list[str]:
        return list(rounds.plan.names)

    @app.get("/state")
    def state(visitor: Short) -> dict[str, Any]:
        return rounds.state(visitor)

    @app.post("/label")
    def label(given: Given) -> dict[str, Any]:
        rounds.mark(given.key, Mark(*given.before), Mark(*given.after))
        return rounds.state(given.visitor)

    @app.post("/fit")
    def fit(visitor: Short) -> dict[str, Any]:
        rounds.next_round()
        return rounds.state(visitor)

    @app.get("/images/{key}")
    def image(key: str) -> Response:
        headers = {"Cache-Control": "private, max-age=3600"}
        return Response(rounds.picture(key), headers=headers, media_type="image/jpeg")

    app.get("/shared.css")(shared_style)
    app.mount("/", StaticFiles(directory=Path(__file__).parent / "page", html=True))
    return app


def shared_style() -> Response:
    """The style sheet of every page."""
    return FileResponse(STYLE)


def is_own(headers: Headers, path: str) -> bool:
    """Whether the page itself sends a request, and no site that a visitor has open besides."""
    own = f"http://{headers.get('host', '')}"
    if headers.get("origin", own) != own:
        return False
    # A link to the page is welcome
    return path == "/" or headers.get("sec-fetch-site", "none") in ("none", "same-origin")
