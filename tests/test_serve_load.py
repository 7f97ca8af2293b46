"""The page with twenty simultaneous visitors, one of them hostile: right answers, a bounded delay, memory and disk."""

import io
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from visitors import BOUNDARY, answer, attacks, classified, file_data, hostile, join, png, post, upload

from common.start import ROOT
from inference.classifier import PromptedClassifier
from inference.models import open_models

pytest.importorskip("gradio", reason="gradio is not installed (requirements-serve.txt)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")]

VISITORS = 20


def photo(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "png")
    return file.getvalue()


class Served:
    """A server of its own process."""

    def __init__(self, process, port: int, folder: Path):
        self.process, self.port, self.folder = process, port, folder

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=120)

    def megabytes(self) -> int:
        """The most memory that it had so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) // 1024

    def uploaded(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def models(finished):
    return [finished("MPL"), finished("CoOp")]


@pytest.fixture
def served(models, begin, tmp_path):
    port = free_port()
    command = [sys.executable, "tools/serve.py", *map(str, models), "--port", str(port)]
    process = begin(command, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"})
    assert process.stdout.readline().startswith("Open http")
    for pipe in (process.stdout, process.stderr):  # a pipe that nobody reads would stop it
        threading.Thread(target=pipe.read, daemon=True).start()
    return Served(process, port, tmp_path)


def visits(served: Served, count: int, rounds: int = 3) -> dict[tuple[int, int], tuple[float, list]]:
    """Seconds and bars by visitor and round; each asks for names of its own."""

    def visit(visitor: int) -> dict:
        return {
            (visitor, number): classified(served.connect, photo(visitor), names_of(visitor, number))
            for number in range(rounds)
        }

    with ThreadPoolExecutor(count) as pool:
        return {key: value for found in pool.map(visit, range(count)) for key, value in found.items()}


def names_of(visitor: int, number: int) -> list[str]:
    return [f"thing {visitor} {number} {letter}" for letter in "abcde"]


@pytest.mark.thorough
def test_twenty_visitors_get_right_answers_in_time_also_with_a_hostile_one(served, models):
    attacks(served.connect), png(12_000, 7_000)  # its images take this process a while
    visits(served, 2, 1)  # the server computes some things once
    alone = visits(served, VISITORS)
    before, ended, counts = served.megabytes(), threading.Event(), []
    thread = threading.Thread(target=lambda: counts.append(hostile(served.connect, ended)))
    thread.start()
    try:
        together = visits(served, VISITORS - 1)
    finally:
        ended.set()
        thread.join()
    slowest = [max(seconds for seconds, _ in found.values()) for found in (alone, together)]
    figures = f"slowest answer {slowest[0]:.1f} s, with {counts[0]} attacks {slowest[1]:.1f} s, memory {before} MB, "
    print(f"{figures}then {served.megabytes()} MB, uploads {served.uploaded() >> 20} MB")
    assert slowest[1] < 4 * slowest[0] + 2  # twice, on a machine of its own
    assert counts[0] > 20 and served.megabytes() < before + 1500 and served.uploaded() < 2 << 30
    for (visitor, number), (_, bars) in together.items():
        names = names_of(visitor, number)
        for model, found in zip(open_models_of(models), bars, strict=True):
            expected = model.probabilities(Image.open(io.BytesIO(photo(visitor))), names)[0].tolist()
            assert found == pytest.approx(dict(zip(names, expected, strict=True)), abs=1e-4)
    assert served.process.poll() is None


OPENED: dict[str, list[PromptedClassifier]] = {}


def open_models_of(models: list[Path]) -> list[PromptedClassifier]:
    from learned import OPTIONS

    if str(models) not in OPENED:
        OPENED[str(models)] = [model.classifier for model in open_models(models, OPTIONS)]
    return OPENED[str(models)]


@pytest.mark.thorough
def test_one_slow_request_at_a_time(served):
    """Each visitor who asked for a thousand names made all others wait for seconds."""
    many = "\n".join(f"a long name {number}" for number in range(1000))
    file = file_data(upload(served.connect, photo(1)))
    sessions = [join(served.connect, 0, [file, many]) for _ in range(3)]
    short = join(served.connect, 0, [file, "red\nblue"])
    with ThreadPoolExecutor(4) as pool:
        *answers, (message, *bars) = pool.map(lambda session: answer(served.connect, session), [*sessions, short])
    refused = [message["value"] for message, *_ in answers if message["value"]]
    assert refused and all("are computed for another visitor: try again in some seconds" in text for text in refused)
    assert len(refused) < 3 and not message["value"] and all(bars)


@pytest.mark.thorough
def test_a_body_in_chunks_is_refused_even_with_a_length(served):
    """The length was believed, and the chunks were read without an end."""
    headers = {"Transfer-Encoding": "chunked", "Content-Length": "10"}
    assert post(served.connect, "queue/join", b"ffffffff\r\n", "application/json", **headers)[0] == 411


@pytest.mark.thorough
def test_endless_uploads_refuse_nobody(served):
    """Each had its promised size reserved, so that twenty idle connections kept all others out."""
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
    idle = []
    for _ in range(25):
        idle.append(socket.create_connection(("127.0.0.1", served.port)))
        idle[-1].sendall(f"{head}Content-Length: {50 << 20}\r\n\r\n--{BOUNDARY}\r\n".encode())
    time.sleep(1)
    assert upload(served.connect, photo(1))
    for each in idle:
        each.close()
