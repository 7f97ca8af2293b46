"""Runs of train.py, several at a time on one machine, behind one progress bar."""

import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing import get_context

import torch
from tqdm import tqdm

import train
from tools.runs import Chain, Run


def execute(chains: Sequence[Chain], workers: int, title: str) -> dict[Run, str]:
    """Work off all runs, `workers` at a time, each chain in order. What is finished already is skipped.

    Returns:
        what has gone wrong: the run and its error in a line; the rest of its chain is left out.
    """
    failed = {}
    left = deque(sorted(chains, key=len, reverse=True))  # long ones first, so that no core waits for the last
    running: dict[Future, Chain] = {}
    with pool(workers) as executor, tqdm(total=sum(map(len, chains)), desc=title, unit="run", smoothing=0.05) as bar:
        while left or running:
            while left and len(running) < workers:
                chain = left.popleft()
                running[executor.submit(work, chain[0].arguments)] = chain
            done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
            bar.refresh()  # the clock goes on
            for future in done:
                run, *rest = running.pop(future)
                error = future.result()
                bar.update()
                if error:
                    failed[run] = error
                    bar.write(f"failed: {run.folder}: {error}", file=sys.stderr)
                    bar.update(len(rest))
                elif rest:
                    left.appendleft(tuple(rest))
    return failed


@contextmanager
def pool(workers: int):
    """Processes of one thread each: two runs side by side outrun one on two threads. Killed if anything goes wrong."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes to come
    executor = ProcessPoolExecutor(workers, get_context("spawn"), prepare_worker)  # CUDA can't be forked
    try:
        yield executor
    except BaseException:
        for process in list(executor._processes.values()):
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def prepare_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def work(arguments: Sequence[str]) -> str | None:
    """One run in this process; what it prints is in its log.txt. Returns its error in a line, or None."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            train.main(list(arguments))
        except Exception as error:  # noqa: BLE001 - whatever it is, the other runs go on
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
        finally:
            if sys.stdout is not nowhere:
                sys.stdout.close()  # the log, which train.py has put in between
    return None
