"""Limits of requests to the page and the API, and which requests of the page reach Gradio."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from anyio import fail_after
from dassl.utils.images import MAX_BYTES
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_REQUEST = 1 << 18  # bytes of any other request: the class names have most of them
SLOWEST = 300  # seconds of a request with a body
ALL_BYTES = 160 << 20  # that have arrived of all requests without an answer
# Seconds: how often Gradio deletes uploads, and from what age on
EVERY = 600
OLDEST = 3600
# Requests of a browser with the page
POSTS = "/upload", "/queue/join", "/run/predict", "/cancel", "/reset"
# Other routes of Gradio write files, ask other servers, or have a use for logins and recordings
GETS = re.compile(
    "(/gradio_api)?(|/config|/info|/app_id|/startup-events|/queue/data|/upload_progress"
    "|/heartbeat/[^/]+|/theme.css|/manifest.json|/robots.txt|/favicon.ico"
    "|/(static|assets|svelte|pwa_icon)/.+|/file=(?!https?:).+)",
    re.IGNORECASE | re.DOTALL,
)


class Gate:
    """ASGI middleware: refuses a request that is too large or too slow, or while too much waits.

    The bytes of a body count that have arrived, not those that its head announces.

    Args:
        app: the application, which may refuse a request by HTTPException, too.
        largest: how many bytes the body of a request may have.
        answer: the application that says the status and the reason of a refusal.
    """

    def __init__(
        self,
        app: ASGIApp,
        largest: Callable[[Scope], int],
        answer: Callable[[int, str], ASGIApp],
    ):
        self.app = app
        self.largest = largest
        self.answer = answer
        self.bytes = 0  # of requests without an answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
                await self.app(scope, receive, noted)
            else:
                self.check_size(scope)
                with fail_after(SLOWEST):
                    await self.counted(scope, receive, noted)
        except TimeoutError:
            refused = HTTPException(408, "the request takes too long")
        except HTTPException as error:
            refused = error
        else:
            return
        if not has_begun:  # else the server ends the connection, as an answer is not complete
            await self.answer(refused.status_code, refused.detail)(scope, receive, send)

    def check_size(self, scope: Scope) -> None:
        """HTTPException if the head announces too much, or does not say how much."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if not length or b"transfer-encoding" in headers:  # chunks have any length
            raise HTTPException(411, "the length is missing")
        largest = self.largest(scope)
        if not length.isdigit() or len(length) > 11 or int(length) > largest:
            raise HTTPException(413, f"the request has more than {largest:,} bytes")

    async def counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on while all requests have few bytes here."""
        arrived = 0

        def count(size: int) -> None:
            nonlocal arrived
            arrived += size
            self.bytes += size

        async def part() -> Message:
            message = await receive()
            count(len(message.get("body", b"")))
            if self.bytes > ALL_BYTES:
                count(-arrived)  # at once, or the other requests would be refused, too
                raise HTTPException(503, "too many requests wait: send this one later")
            return message

        try:
            await self.app(scope, part, send)
        finally:
            count(-arrived)


class Limits:
    """ASGI middleware: which addresses of the page there are, and which files a request may name.

    Gradio fetches any address that a request names as a file, and opens files outside its folder.
    So only uploads and examples may be named.

    Args:
        app: the server's application.
        uploads: the folder of the uploads and the examples.
    """

    def __init__(self, app: ASGIApp, uploads: Path):
        self.app = app
        self.uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].rstrip("/")
            is_read = scope["method"] in ("GET", "HEAD", "OPTIONS")
            if not (GETS.fullmatch(path) if is_read else path.endswith(POSTS)):
                raise HTTPException(403, "the page has no such address")
            if not is_read and not path.endswith("/upload"):
                receive = await self.checked(scope, receive)
        await self.app(scope, receive, send)

    async def checked(self, scope: Scope, receive: Receive) -> Receive:
        """The same request again, a JSON text that names no other files than uploads."""
        body = await Request(scope, receive).body()
        try:
            files = [*files_in(json.loads(body))]
        except (ValueError, RecursionError):
            raise HTTPException(400, "this is not JSON") from None
        if not all(map(self.is_upload, files)):
            raise HTTPException(403, "there is no such upload")
        messages = [{"type": "http.request", "body": body}]

        async def again() -> Message:
            return messages.pop() if messages else await receive()

        return again

    def is_upload(self, path: Any) -> bool:
        """Whether it is the path of an upload or an example: a visitor can send any."""
        # A NUL in the path, or links without an end
        with suppress(OSError, ValueError, RuntimeError):
            if isinstance(path, str):
                file = Path(path).resolve()
                return file.is_relative_to(self.uploads.resolve()) and file.is_file()
        return False


def largest_of(scope: Scope) -> int:
    """The bytes of a request of the page."""
    if scope["path"].rstrip("/").endswith("/upload"):
        return MAX_BYTES + LARGEST_REQUEST  # a form has more than the file
    return LARGEST_REQUEST


def files_in(content: Any) -> Iterator[Any]:
    """The files that a JSON value names: the value of each key `path` in it."""
    parts = [content]
    while parts:
        part = parts.pop()
        if isinstance(part, dict) and "path" in part:
            yield part["path"]
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
