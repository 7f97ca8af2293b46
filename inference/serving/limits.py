"""Limits for visitors of the page: the size of one request, and of all uploaded files together."""

from asyncio import TimeoutError, wait_for  # of Python 3.10, too
from contextlib import suppress
from pathlib import Path

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_UPLOAD = 50 << 20  # bytes of an image
LARGEST_REQUEST = 1 << 18  # bytes of any other request: the class names have most of them
ALL_UPLOADS = 1 << 30  # bytes; the oldest files are deleted first
SMALLEST = 1 << 18  # bytes that a file counts at least: each upload looks at all files
SLOWEST = 300  # seconds of an upload
EVERY, OLDEST = 600, 3600  # seconds: how often Gradio deletes uploads, and from what age on


class Limits:
    """ASGI middleware: refuses requests that are too large before their body is read, and deletes old uploads.

    Args:
        app: the server's application.
        uploads: the folder of the uploads. Files that are there already, such as examples, stay.
    """

    def __init__(self, app: ASGIApp, uploads: Path):
        self.app, self.uploads = app, uploads
        self.own = set(uploads.rglob("*"))
        self.coming = 0  # bytes of uploads that have arrived of those that are not complete

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        upload = scope["path"].endswith("/upload")
        most = LARGEST_UPLOAD + LARGEST_REQUEST if upload else LARGEST_REQUEST  # a form has more than the file
        if not length.isdigit() or b"transfer-encoding" in headers:  # chunks have any length, whatever the other says
            return await PlainTextResponse("the length is missing", 411)(scope, receive, send)
        if (size := int(length)) > most:
            return await PlainTextResponse(f"more than {most:,} bytes", 413)(scope, receive, send)
        if not upload:
            return await self.app(scope, receive, send)
        if not self.make_room(size):
            return await PlainTextResponse("too many uploads, try again later", 503)(scope, receive, send)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += (arrived := len(message.get("body", b"")))
            self.coming += arrived
            return message if self.coming <= ALL_UPLOADS else {"type": "http.disconnect"}

        try:
            await wait_for(self.app(scope, counted, send), SLOWEST)
        except TimeoutError:
            await PlainTextResponse("the upload takes too long", 408)(scope, receive, send)
        finally:
            self.coming -= received

    def make_room(self, size: int) -> bool:
        """Delete the oldest uploads until there are at most ALL_UPLOADS bytes with a new one of this size.

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
