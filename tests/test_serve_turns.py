"""Whose request is computed, and when."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore

import pytest
from starlette.exceptions import HTTPException

gradio = pytest.importorskip("gradio", reason="gradio is not installed (requirements-serve.txt)")
from inference.serving import limits  # noqa: E402
from inference.serving import page as serve_page  # noqa: E402


def test_visitors_take_turns_and_a_flood_of_one_does_not_fill_the_queue(monkeypatch):
    turns, order = limits.Turns(), []

    def ask(address, session):
        with turns.of(address, session):
            order.append(session)
            go.acquire()

    go, pool = Semaphore(0), ThreadPoolExecutor(9)
    for session in ("a1", "a1", "a2", "a3"):  # the second of a1 waits for the first
        pool.submit(ask, session[0], session)
        time.sleep(0.05)
    assert order == ["a1", "a2", "a3"]
    for session in ("a4", "b1"):
        pool.submit(ask, session[0], session)
        time.sleep(0.05)
    go.release(2)
    time.sleep(0.1)
    assert order[3:] == ["b1"]  # while several addresses ask, each has one
    go.release(9)
    pool.shutdown()
    assert sorted(order) == ["a1", "a1", "a2", "a3", "a4", "b1"] and not turns.computed and not turns.waiting
    assert [turns.count("a", "s") for _ in range(9)].count(True) == limits.MOST_OF_SESSION
    assert [turns.count("a", f"s{n}") for n in range(99)].count(True) == limits.MOST_OF_ADDRESS - 8
    assert limits.MOST_OF_ADDRESS < serve_page.MOST_WAITING / 2 and turns.count("b", "t")
    monkeypatch.setattr(limits, "PATIENCE", 0)
    with pytest.raises(HTTPException, match="429"):
        asyncio.run(turns.admit("a", "v"))
    turns.waiting += [("c", "s")] * limits.MOST_OF_SESSION  # threads that wait are not forgotten
    monkeypatch.setattr(limits, "FORGOTTEN", 0)
    asyncio.run(turns.admit("a", "v"))
    with pytest.raises(HTTPException, match="429"):
        asyncio.run(turns.admit("c", "s"))
    turns.waiting.clear()
    with turns.of("a", "a1", True):  # many class names: the next visitor with many waits, others do not
        assert not turns.is_next("b", "b1", True) and turns.is_next("b", "b1", False)


def test_an_address_rests_after_what_it_has_cost_while_others_ask():
    """Refused requests and long computations of one visitor made others wait three times as long."""
    turns = limits.Turns()
    turns.note("a")
    assert turns.rest_after("a", 9) == 0 and turns.is_next("a", "s", False)  # nobody else asks
    turns.note("b")
    with turns.of("a", "s"):
        time.sleep(limits.BURST + 0.1)
    assert not turns.is_next("a", "t", False) and turns.is_next("b", "t", False)
    start = time.monotonic()
    with turns.of("a", "s"):
        assert time.monotonic() - start > 0.05  # the rest ends, and nobody tells that
    assert limits.LONGEST_REST - 1 < turns.rest_after("a", 99) < limits.LONGEST_REST
