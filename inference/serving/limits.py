"""Limits of requests to the page and the API, and which requests of the page reach Gradio."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from anyio import fail_after
from dassl.utils.images import MAX_BYTES
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_REQUEST = 1 << 18  # bytes of any other request: the class names have most of them
ALL_UPLOADS = 1 << 30  # bytes; the oldest files are deleted first
SMALLEST = 1 << 18  # bytes that a file counts at least: each upload looks at all files
SLOWEST = 300  # seconds of a request with a body
ALL_BYTES = 160 << 20  # that have arrived of all requests without an answer
# Seconds: how often Gradio deletes uploads, and from what age on
EVERY = 600
OLDEST = 3600
# Requests of a browser with the page
POSTS = (
    "/upload",
    "/queue/join",
    "/run/predict",
    "/cancel",
    "/reset",
)
KEYS = "data", "fn_index", "session_hash", "trigger_id", "event_id"  # of a question
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
    """ASGI middleware: refuses requests before Gradio reads them, and deletes old uploads.

    Gradio fetches any address that a request names as a file, and answers a path outside its folder
    with a traceback. So only uploads may be named.

    Args:
        app: the server's application.
        uploads: the folder of the uploads. Files that are there already, such as examples, stay.
        functions: for each function of the page what its values have to be.
    """

    def __init__(
        self,
        app: ASGIApp,
        uploads: Path,
        functions: Sequence[Sequence[Callable[[Any], bool]]],
    ):
        self.app = app
        self.uploads = uploads
        self.functions = functions
        self.own = set(uploads.rglob("*"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").rstrip("/")
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            if scope["type"] == "http" and not GETS.fullmatch(path):
                raise HTTPException(403, "the page has no such address")
            await self.app(scope, receive, send)
        elif not path.endswith(POSTS):
            raise HTTPException(404, "there is no such function")
        elif path.endswith("/upload"):
            if not self.make_room(length_of(scope)):
                raise HTTPException(503, "too many uploads, try again later")
            await self.app(scope, receive, send)
        else:
            await self.question(scope, receive, send, length_of(scope))

    async def question(self, scope: Scope, receive: Receive, send: Send, size: int) -> None:
        """Pass on a JSON text that names no other files than uploads; what Gradio reads is what was
        checked.
        """
        body = b""
        while len(body) < size:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
        try:
            content = dict(json.loads(body))
        except (ValueError, TypeError, RecursionError):
            raise HTTPException(400, "this is not a JSON object") from None
        is_question = scope["path"].rstrip("/").endswith(("/join", "/predict"))
        if is_question and not self.is_asked(content):
            raise HTTPException(400, "the page does not ask this")
        if not all(self.is_upload(file) for file in files_in(content)):
            raise HTTPException(403, "there is no such upload")
        body = json.dumps({key: content[key] for key in KEYS if key in content}).encode()
        await self.pass_on(body, scope, receive, send)

    async def pass_on(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Give a request another body, a JSON text."""
        lengths = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers = [pair for pair in scope["headers"] if pair[0] not in dict(lengths)] + lengths
        messages = [{"type": "http.request", "body": body}]

        async def checked() -> Message:
            return messages.pop() if messages else await receive()

        await self.app({**scope, "headers": headers}, checked, send)

    def is_asked(self, content: dict[str, Any]) -> bool:
        """Whether the page asks such a question: Gradio answers others with a traceback."""
        function = content.get("fn_index")
        values = content.get("data")
        if not isinstance(function, int) or not isinstance(content.get("session_hash"), str):
            return False
        if not 0 <= function < len(self.functions) or not isinstance(values, list):
            return False
        accepts = self.functions[function]
        pairs = zip(accepts, values, strict=False)
        return len(accepts) == len(values) and all(accept(value) for accept, value in pairs)

    def is_upload(self, path: Any) -> bool:
        """Whether it is the path of an upload or an example: a visitor can send any."""
        # A NUL in the path, or links without an end
        with suppress(OSError, ValueError, RuntimeError):
            if isinstance(path, str):
                file = Path(path).resolve()
                return file.is_relative_to(self.uploads.resolve()) and file.is_file()
        return False

    def make_room(self, size: int) -> bool:
        """Delete the oldest uploads until there are at most ALL_UPLOADS bytes with a new one of
        this size.

        Returns:
            whether they have.
        """
        found = []
        for path in set(self.uploads.rglob("*")) - self.own:
            with suppress(OSError):  # deleted by another request, or a folder that is not empty
                if path.is_dir():
                    path.rmdir()
                else:
                    status = path.stat()
                    found.append((status.st_mtime, max(SMALLEST, status.st_size), path))
        excess = size + sum(each for _, each, _ in found) - ALL_UPLOADS
        for _, freed, path in sorted(found):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= freed
        return excess <= 0


def length_of(scope: Scope) -> int:
    return int(dict(scope["headers"])[b"content-length"])


def largest_of(scope: Scope) -> int:
    """The bytes of a request of the page."""
    if scope["path"].rstrip("/").endswith("/upload"):
        return MAX_BYTES + LARGEST_REQUEST  # a form has more than the file
    return LARGEST_REQUEST


def is_file(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and "path" in value)


def is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def files_in(content: Any) -> Iterator[Any]:
    """The files that a JSON value names: the value of each key `path` in it."""
    parts = [content]
    while parts:
        part = parts.pop()
        if isinstance(part, dict) and "path" in part:
            yield part["path"]
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
