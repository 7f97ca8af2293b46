"""A process of a study: it executes the runs whose arguments come from stdin, a line each, until stdin ends."""

import json
import os
import sys
from queue import SimpleQueue
from threading import Thread


def work() -> None:
    """Answer each line of stdin with a line on stdout: the outcome of the run (`executor.execute_run`), as JSON."""
    runs: SimpleQueue[str] = SimpleQueue()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    Thread(target=read_until_end, args=(runs,), daemon=True).start()
    from .executor import execute_run  # torch takes seconds, in which the main process may end

    while True:
        print(json.dumps(execute_run(json.loads(runs.get()))), file=answers, flush=True)


def read_until_end(runs: "SimpleQueue[str]") -> None:
    """Put the lines of stdin into a queue. At its end, when the main process has ended, end this process."""
    for line in sys.stdin:
        runs.put(line)
    os._exit(1)
