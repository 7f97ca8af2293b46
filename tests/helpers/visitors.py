"""Visitors of the page of tools/serve.py, over HTTP as a browser does it: benign ones, and a
hostile one.
"""

import asyncio
import io
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from threading import Thread
from time import sleep
from typing import Any
from uuid import uuid4

from PIL import Image

BOUNDARY = "----visitor"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
# The function of a page with examples (0 loads one of these); the next one shows the roll-outs
CLASSIFY = 1
Connect = Callable[[], HTTPConnection]


@contextmanager
def served(app: Any, *proxies: str, host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """The port at which an application is served, in another thread."""
    from inference.serving import server as serving

    server = serving.Server(app, host, proxies, grace=0)
    with serving.listen(host, port) as listening:
        thread = Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            sleep(0.01)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
    assert not server.server_state.connections


@contextmanager
def started(page: Any) -> Iterator[tuple[str, Connect]]:
    """The address of a page that is started, and what connects to it."""
    with served(page.application()) as port:
        yield f"http://127.0.0.1:{port}/", lambda: HTTPConnection("127.0.0.1", port, timeout=30)


def post(
    connect: Connect, path: str, body: bytes, kind: str = "application/json", **headers: str
) -> tuple[int, bytes]:
    """The status and the content of the answer; the length of the body may be another one than
    `Content-Length`.
    """
    with closing(connect()) as connection:
        connection.putrequest("POST", f"/gradio_api/{path}")
        for key, value in (
            {"Content-Type": kind, "Content-Length": str(len(body))} | headers
        ).items():
            if value:
                connection.putheader(key, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read()


def upload(connect: Connect, *images: bytes, name: str = "photo.png") -> list[str]:
    """Upload files; returns where the server keeps them: nowhere, if it refuses them."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body = b"".join(head + image + b"\r\n" for image in images) + f"--{BOUNDARY}--\r\n".encode()
    status, answer = post(connect, "upload", body, FORM)
    return json.loads(answer) if status == 200 else []


def file_data(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def join(connect: Connect, function: int, *data: Any) -> str:
    """Ask for a function of the page; returns the session."""
    body = event(function, *data)
    post(connect, "queue/join", body)
    return json.loads(body)["session_hash"]


def event(function: int, *data: Any) -> bytes:
    """A question for a function of the page, of a new session."""
    known = {
        "fn_index": function,
        "session_hash": uuid4().hex,
        "event_data": None,
        "trigger_id": None,
    }
    return json.dumps({"data": data, **known}).encode()


def answer(connect: Connect, session: str) -> dict[str, Any]:
    """The last message about what a session has asked for."""
    with closing(connect()) as connection:
        connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
        lines = (line for line in connection.getresponse() if line.startswith(b"data:"))
        messages = (json.loads(line.removeprefix(b"data:")) for line in lines)
        return next(message for message in messages if message.get("msg") == "process_completed")


def classified_by(page: Any, file: str, text: str) -> list[Any]:
    """The message and the bars of a page that is not served."""

    async def ask() -> list[Any]:
        async with page.service.running(None):
            return await page.answer({"path": file}, text)

    return asyncio.run(ask())


def classified(connect: Connect, image: bytes, names: list[str]) -> list[dict[str, float]]:
    """The bars of each model as {class name: probability}."""
    message = answer(
        connect, join(connect, CLASSIFY, file_data(*upload(connect, image)), "\n".join(names))
    )
    assert message["success"], message["output"]
    return [
        {bar["label"]: bar["confidence"] for bar in each["confidences"]}
        for each in message["output"]["data"][1:]
    ]


def png(width: int, height: int) -> bytes:
    Image.new("L", (width, height)).save(file := io.BytesIO(), "png")
    return file.getvalue()


def comments(number: int) -> bytes:
    """A GIF with this many comments, of which the decoder reads one after another."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 9, 9, 0) + b"\x02\x02\x44\x01\0;"
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", 9, 9, 0x80, 0, 0)
        + bytes(6)
        + b"\x21\xfe\x01a\0" * number
        + frame
    )
