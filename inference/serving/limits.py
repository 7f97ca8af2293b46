"""Limits for visitors of the page: the size of one request, and of all uploaded files together."""

from contextlib import suppress
from pathlib import Path

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LARGEST_UPLOAD = 50 << 20  # bytes of an image
LARGEST_REQUEST = 1 << 18  # bytes of any other request: the class names have most of them
ALL_UPLOADS = 1 << 30  # bytes; the oldest files are deleted first
SMALLEST = 1 << 16  # bytes that a file counts at least, which bounds their number
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
        self.coming = 0  # bytes of uploads that are being received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"")
        upload = scope["path"].endswith("/upload")
        most = LARGEST_UPLOAD + LARGEST_REQUEST if upload else LARGEST_REQUEST  # a form has more than the file
        if not length.isdigit():
            return await PlainTextResponse("the length is missing", 411)(scope, receive, send)
        if (size := int(length)) > most:
            return await PlainTextResponse(f"more than {most:,} bytes", 413)(scope, receive, send)
        if not upload:
            return await self.app(scope, receive, send)
        self.coming += size
        try:
            if self.make_room():
                return await self.app(scope, receive, send)
            return await PlainTextResponse("too many uploads, try again later", 503)(scope, receive, send)
        finally:
            self.coming -= size

    def make_room(self) -> bool:
        """Delete the oldest uploads until all have at most ALL_UPLOADS bytes with those that are being received.

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
        excess = sum(size for _, size, _ in found) + self.coming - ALL_UPLOADS
        for _, size, path in sorted(found):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size
        return excess <= 0
