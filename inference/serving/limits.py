"""Limits for visitors of the page: which requests reach Gradio, how large they are, and whose turn it is."""

import json
from asyncio import TimeoutError, sleep, wait_for  # TimeoutError of Python 3.10, too
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Condition
from time import monotonic
from typing import Any

from dassl.utils.images import MAX_BYTES
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_REQUEST = 1 << 18  # bytes of any other request: the class names have most of them
ALL_UPLOADS = 1 << 30  # bytes; the oldest files are deleted first
SMALLEST = 1 << 18  # bytes that a file counts at least: each upload looks at all files
SLOWEST = 300  # seconds of an upload
EVERY, OLDEST = 600, 3600  # seconds: how often Gradio deletes uploads, and from what age on
POSTS = "/upload", "/queue/join", "/run/predict", "/cancel", "/reset"  # requests of a browser with the page
FETCHES = "file=http", "proxy="  # in the path of a question: Gradio would ask another server
AT_ONCE = 3  # requests that are computed: one may be a large image
MOST_OF_SESSION, MOST_OF_ADDRESS = 8, 24  # requests of one visitor that wait; Gradio has 40 threads for all
PATIENCE = 20  # seconds until a request of such a visitor is refused
FORGOTTEN = 10  # seconds until a request no longer counts, as one for another function of Gradio never ends here
PACE = 8 << 20  # bytes of uploads a second of one address while others ask: Gradio parses them where it answers
REFUSAL = 0.5  # seconds that a refused request costs its address
LONGEST_PAUSE = 0.25  # seconds between two parts of an upload: the largest one ends before SLOWEST
BURST, LONGEST_REST = 0.25, 5  # seconds of cost after which an address rests, and its longest rest


class Refused(Exception):
    """The HTTP status and the text that answer a request."""


class Limits:
    """ASGI middleware: refuses requests before Gradio reads them, and deletes old uploads.

    Gradio fetches any address that a request names as a file, and answers a path outside its folder with a traceback.
    So only uploads may be named.

    Args:
        app: the server's application.
        uploads: the folder of the uploads. Files that are there already, such as examples, stay.
        turns: how many requests of a visitor wait.
    """

    def __init__(self, app: ASGIApp, uploads: Path, turns: "Turns"):
        self.app, self.uploads, self.turns = app, uploads, turns
        self.own = set(uploads.rglob("*"))
        self.coming = 0  # bytes of uploads that have arrived of those that are not complete

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                await self.post(scope, receive, send)
            elif any(words in scope.get("path", "").lower() for words in FETCHES):
                raise Refused(403, "this server fetches nothing")
            else:
                await self.app(scope, receive, send)
        except Refused as refused:
            status, text = refused.args
            await sleep(self.turns.rest_after(address_of(scope), REFUSAL))
            await PlainTextResponse(text, status)(scope, receive, send)

    async def post(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].rstrip("/")
        if not path.endswith(POSTS):
            raise Refused(404, "there is no such function")
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        handle, most = self.question, LARGEST_REQUEST
        if path.endswith("/upload"):
            handle, most = self.upload, MAX_BYTES + LARGEST_REQUEST  # a form has more than the file
        if not length.isdigit() or b"transfer-encoding" in headers:  # chunks have any length, whatever the other says
            raise Refused(411, "the length is missing")
        if int(length) > most:
            raise Refused(413, f"more than {most:,} bytes")
        try:
            await wait_for(handle(scope, receive, send, int(length)), SLOWEST)
        except TimeoutError:
            raise Refused(408, "the request takes too long") from None

    async def question(self, scope: Scope, receive: Receive, send: Send, size: int) -> None:
        """Pass on a JSON text that names no other files than uploads; what Gradio reads is what was checked."""
        body = b""
        while len(body) < size:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
        try:
            content = dict(json.loads(body))
        except (ValueError, TypeError, RecursionError):
            raise Refused(400, "this is not a JSON object") from None
        if not all(self.is_upload(file) for file in files_in(content)):
            raise Refused(403, "there is no such upload")
        if scope["path"].rstrip("/").endswith(("/join", "/predict")):
            await self.turns.admit(address_of(scope), str(content.get("session_hash")))
        body = json.dumps(content).encode()
        lengths = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers = [pair for pair in scope["headers"] if pair[0] not in dict(lengths)] + lengths
        messages = [{"type": "http.request", "body": body}]

        async def checked() -> Message:
            return messages.pop() if messages else await receive()

        await self.app({**scope, "headers": headers}, checked, send)

    async def upload(self, scope: Scope, receive: Receive, send: Send, size: int) -> None:
        if not self.make_room(size):
            raise Refused(503, "too many uploads, try again later")
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += (arrived := len(message.get("body", b"")))
            self.coming += arrived
            await sleep(min(self.turns.rest_after(address_of(scope), arrived / PACE), LONGEST_PAUSE))
            return message if self.coming <= ALL_UPLOADS else {"type": "http.disconnect"}

        try:
            await self.app(scope, counted, send)
        finally:
            self.coming -= received

    def is_upload(self, path: Any) -> bool:
        """Whether it is the path of an upload or an example: a visitor can send any."""
        with suppress(OSError, ValueError, RuntimeError):  # a NUL in the path, or links without an end
            if isinstance(path, str):
                file = Path(path).resolve()
                return file.is_relative_to(self.uploads.resolve()) and file.is_file()
        return False

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


def address_of(scope: Scope) -> str:
    return (scope["client"] or [""])[0]


def files_in(content: Any) -> Iterator[Any]:
    """The files that a JSON value names: the value of each key `path` in it."""
    parts = [content]
    while parts:
        part = parts.pop()
        if isinstance(part, dict) and "path" in part:
            yield part["path"]
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


class Turns:
    """Whose request is computed: AT_ONCE of them, one of a session, one that takes long.

    While several addresses ask, each has one, and rests after it for as long as it took: a session is whatever a
    visitor says, an address is not.
    """

    def __init__(self) -> None:
        self.change = Condition()
        self.asked: list[tuple[float, tuple[str, str]]] = []  # time and visitor, until a thread has the request
        self.waiting: list[tuple[str, str]] = []  # the visitor of each thread that waits
        self.computed: list[tuple[str, str, bool]] = []  # address, session, whether it takes long
        self.last: dict[str, float] = {}  # when each address asked last, if it was lately
        self.rests: dict[str, float] = {}  # until when an address pays for what it has cost

    async def admit(self, *visitor: str) -> None:
        """Wait until few requests of an address and a session wait: a flood is as slow as its answers."""
        deadline = monotonic() + PATIENCE
        while not self.count(*visitor):
            if monotonic() > deadline:
                raise Refused(429, "too many of your requests wait")
            await sleep(0.05)

    def count(self, address: str, session: str) -> bool:
        """Count one more request, unless too many of the visitor's wait."""
        with self.change:
            self.note(address)
            self.asked = [(when, visitor) for when, visitor in self.asked if when > monotonic() - FORGOTTEN]
            visitors = [visitor for _, visitor in self.asked] + self.waiting
            few = sum(visitor[0] == address for visitor in visitors) < MOST_OF_ADDRESS
            few = few and sum(visitor[1] == session for visitor in visitors) < MOST_OF_SESSION
            self.asked += [(monotonic(), (address, session))] * few
            return few

    def note(self, address: str) -> None:
        """Note that an address asks now, and forget those that have asked long ago."""
        lately = monotonic() - FORGOTTEN
        self.last = {other: when for other, when in self.last.items() if when > lately} | {address: monotonic()}

    @contextmanager
    def of(self, address: str, session: str, is_long: bool = False) -> Iterator[None]:
        """Wait for the turn of a visitor, who has it until the end."""
        visitor = address, session
        with self.change:
            with suppress(StopIteration):  # it was forgotten
                self.asked.remove(next(entry for entry in self.asked if entry[1] == visitor))
            self.note(address)
            self.waiting.append(visitor)
            while not self.is_next(address, session, is_long):
                rest = self.rests.get(address, 0) - BURST - monotonic()
                self.change.wait(max(0.1, rest))  # nothing reports the end of a rest
            self.waiting.remove(visitor)
            self.computed.append((*visitor, is_long))
        start = monotonic()
        try:
            yield
        finally:
            self.rest_after(address, monotonic() - start)
            with self.change:
                self.computed.remove((*visitor, is_long))
                self.change.notify_all()

    def is_next(self, address: str, session: str, is_long: bool) -> bool:
        addresses = [computed[0] for computed in self.computed]
        if len(addresses) == AT_ONCE or any(computed[:2] == (address, session) for computed in self.computed):
            return False
        if is_long and any(computed[2] for computed in self.computed):
            return False
        alone = set(self.last) == {address}
        return alone or (address not in addresses and self.rests.get(address, 0) - BURST <= monotonic())

    def rest_after(self, address: str, cost: float) -> float:
        """Charge an address with seconds of work while others ask; returns how many seconds it rests now."""
        with self.change:
            now = monotonic()
            self.rests = {other: until for other, until in self.rests.items() if until > now}
            if any(other != address and when > now - FORGOTTEN for other, when in self.last.items()):
                self.rests[address] = min(self.rests.get(address, now) + cost, now + LONGEST_REST)
            return max(0.0, self.rests.get(address, now) - now - BURST)
