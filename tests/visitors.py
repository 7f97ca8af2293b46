"""Visitors of the page of tools/serve.py, over HTTP as a browser does it: benign ones, and a hostile one."""

import io
import json
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import cache
from http.client import HTTPConnection, HTTPException
from itertools import cycle
from threading import Event
from typing import Any
from uuid import uuid4

from PIL import Image

BOUNDARY = "----visitor"
Connect = Callable[[], HTTPConnection]


def post(connect: Connect, path: str, body: bytes, kind: str, **headers: str) -> tuple[int, bytes]:
    """The status and the content of the answer; the length of the body may be another one than `Content-Length`."""
    with closing(connect()) as connection:
        connection.putrequest("POST", f"/gradio_api/{path}")
        for key, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | headers).items():
            connection.putheader(key, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read()


def upload(connect: Connect, image: bytes, name: str = "photo.png") -> str:
    """Upload a file; returns where the server keeps it, or an empty text if it refuses the file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body = head + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    status, answer = post(connect, "upload", body, f"multipart/form-data; boundary={BOUNDARY}")
    return json.loads(answer)[0] if status == 200 else ""


def join(connect: Connect, function: int, data: list[Any]) -> str:
    """Ask for a function of the page; returns the session, or an empty text if it is refused."""
    session = uuid4().hex
    event = {"data": data, "fn_index": function, "session_hash": session, "event_data": None, "trigger_id": None}
    status, _ = post(connect, "queue/join", json.dumps(event).encode(), "application/json")
    return session if status == 200 else ""


def answer(connect: Connect, session: str) -> list[Any]:
    """The answer of the function, which may take a while; RuntimeError if it was refused."""
    if not session:
        raise RuntimeError("the page refused the request")
    with closing(connect()) as connection:
        connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
        for line in connection.getresponse():
            message = json.loads(line.removeprefix(b"data:")) if line.startswith(b"data:") else {}
            if message.get("msg") == "process_completed":
                if not message["success"]:
                    raise RuntimeError(f"the page failed: {message['output']}")
                return message["output"]["data"]
    raise RuntimeError("the page ended the answer")


def file_data(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def classified(connect: Connect, image: bytes, names: list[str], function: int = 0) -> tuple[float, list[Any]]:
    """The seconds until the answer, and the bars of each model as {class name: probability}."""
    begun = time.monotonic()
    session = join(connect, function, [file_data(upload(connect, image)), "\n".join(names)])
    _, *bars = answer(connect, session)
    return time.monotonic() - begun, [{bar["label"]: bar["confidence"] for bar in each["confidences"]} for each in bars]


@cache
def png(width: int, height: int) -> bytes:
    Image.new("L", (width, height)).save(file := io.BytesIO(), "png")
    return file.getvalue()


def attacks(connect: Connect) -> list[Callable[[], object]]:
    """The actions of the hostile visitor: none of them waits for an answer of the functions."""
    thin = [png(200_000, 1), png(1, 200_000), png(9000, 90)]
    most = "\n".join(f"a long name of a class {number}"[:19] for number in range(1000))
    length, form = {"Content-Length": str(200 << 20)}, f"multipart/form-data; boundary={BOUNDARY}"
    chunked = {"Transfer-Encoding": "chunked"}

    def ask(image: bytes, text: str) -> str:
        return join(connect, 0, [file_data(upload(connect, image)), text])

    return [
        *(lambda image=image: ask(image, "red\nblue") for image in thin),
        lambda: ask(png(12_000, 7_000), "red\nblue"),
        lambda: ask(thin[2], most),
        lambda: ask(thin[2], "a" * 200_000),
        lambda: join(connect, 0, [None] * 50_000),
        lambda: join(connect, 0, [file_data("/etc/passwd"), "red\nblue"]),
        lambda: join(connect, 999, []),
        *(
            lambda body=body: post(connect, "queue/join", body, "application/json")
            for body in (b"{" * 99, b"[" * 10**5)
        ),
        lambda: post(connect, "queue/join", b"", "application/json", **length),
        lambda: post(connect, "queue/join", b"ffffffff\r\n", "application/json", **chunked),
        lambda: post(connect, "upload", b"x" * 1000, form, **length),
        lambda: post(connect, "upload", b"no form" * 1000, "multipart/form-data"),
        lambda: upload(connect, bytes(20 << 20)),
        *[lambda: upload(connect, b"x", "../../outside.png")] * 20,
    ]


def hostile(connect: Connect, ended: Event) -> int:
    """Attack until the event; returns how often."""
    for count, attack in enumerate(cycle(attacks(connect))):
        if ended.is_set():
            return count
        with suppress(OSError, HTTPException, ValueError, RuntimeError):
            attack()
    raise AssertionError
