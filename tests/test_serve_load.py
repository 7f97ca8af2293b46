"""The page with twenty simultaneous visitors, one of them hostile: right answers, a bounded delay, memory and disk."""

import io
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from learned import OPTIONS
from PIL import Image
from visitors import attacks, classified, hostile

from common.start import ROOT
from inference.models import open_models

pytest.importorskip("gradio", reason="gradio is not installed (requirements-serve.txt)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")]

VISITORS, ROUNDS = 20, 3


def photo(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (300, 400, 3), dtype=np.uint8))


def names_of(visitor: int, number: int) -> list[str]:
    return [f"thing {visitor} {number} {letter}" for letter in "abcde"]


def visits(connect, count: int, rounds: int = ROUNDS) -> dict[tuple[int, int], tuple[float, list]]:
    """Seconds and bars by visitor and round; each asks for names of its own."""

    def visit(visitor: int) -> list:
        photo(visitor).save(file := io.BytesIO(), "png")
        return [classified(connect, file.getvalue(), names_of(visitor, number)) for number in range(rounds)]

    with ThreadPoolExecutor(count) as pool:
        found = pool.map(visit, range(count))
        return {(visitor, number): each for visitor, own in enumerate(found) for number, each in enumerate(own)}


@pytest.mark.thorough
def test_twenty_visitors_get_right_answers_in_time_also_with_a_hostile_one(finished, begin, tmp_path):
    models = [finished("MPL"), finished("CoOp")]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "tools/serve.py", *map(str, models), "--port", str(port)]
    process = begin(command, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"})
    assert process.stdout.readline().startswith("Open http")
    for pipe in (process.stdout, process.stderr):  # a pipe that nobody reads would stop it
        threading.Thread(target=pipe.read, daemon=True).start()

    def connect() -> HTTPConnection:
        return HTTPConnection("127.0.0.1", port, timeout=120)

    def megabytes() -> int:
        """The most memory that the server had so far."""
        return int(Path(f"/proc/{process.pid}/status").read_text().split("VmHWM:")[1].split()[0]) // 1024

    attacks(connect)  # its images take this process a while
    visits(connect, 2, 1)  # the server computes some things once
    alone = visits(connect, VISITORS)
    before, ended, counts = megabytes(), threading.Event(), []
    thread = threading.Thread(target=lambda: counts.append(hostile(connect, ended)))
    thread.start()
    try:
        together = visits(connect, VISITORS - 1)
    finally:
        ended.set()
        thread.join()
    slowest = [max(seconds for seconds, _ in found.values()) for found in (alone, together)]
    uploaded = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    figures = f"slowest answer {slowest[0]:.1f} s, with {counts[0]} attacks {slowest[1]:.1f} s, memory {before} MB, "
    print(f"{figures}then {megabytes()} MB, uploads {uploaded >> 20} MB")
    assert slowest[1] < 4 * slowest[0] + 2  # twice, on a machine of its own
    assert counts[0] > 20 and megabytes() < before + 1500 and uploaded < 2 << 30
    opened = open_models(models, OPTIONS)
    for (visitor, number), (_, bars) in together.items():
        names = names_of(visitor, number)
        for (_, classifier), found in zip(opened, bars, strict=True):
            expected = classifier.probabilities(photo(visitor), names)[0].tolist()
            assert found == pytest.approx(dict(zip(names, expected, strict=True)), abs=1e-4)
    assert process.poll() is None
