"""A command from its start to its exit status: errors in one line, Ctrl-C and SIGTERM as a clean end."""

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.errors import UsageError

from .known_errors import known_error
from .ranks import INTERRUPTED, end_process, in_group, rank_count, silence
from .shortages import causes
from .watch import OtherRankFailed

LONGEST = 2000  # characters of an error: the fault comes first, the remedy last


def cli_main(
    main: Callable[[], None], resumes: str = "from the last complete epoch", several_ranks: bool = False
) -> None:
    """Run `main`. User errors become one line (exit status 2), Ctrl-C and SIGTERM a clean end (130).

    `--debug` on the command line, or MPL_DEBUG=1, shows the traceback of an error, causes included.

    Args:
        main: the command.
        resumes: where the same command resumes after an interrupt.
        several_ranks: whether torchrun may start it on several devices; the first rank of a machine prints.
    """
    debug = "--debug" in sys.argv or os.environ.get("MPL_DEBUG", "") not in ("", "0")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack a letter, and file names may be bytes
    local_rank = os.environ.get("LOCAL_RANK", "")
    if rank_count() > 1 and local_rank.isdecimal() and int(local_rank):
        silence()
    try:
        with interrupts() as interrupt:
            try:
                if rank_count() > 1 and not several_ranks:
                    raise UsageError("this command does not run on several devices", "start it without torchrun")
                main()
                sys.stdout.flush()
            except BaseException as error:
                status = exit_status(error, interrupt, resumes, debug)
                if status is None:
                    raise
                sys.exit(status)
    except BaseException as error:
        if in_group():
            end_process(error)
        raise


def exit_status(error: BaseException, interrupt: "Interrupt", resumes: str, debug: bool) -> int | None:
    """Print what there is to say of an error; returns the exit status, None for a bug and for `sys.exit`."""
    # Whatever else came of it first, such as workers that ended too early.
    if interrupt.received and not isinstance(error, OtherRankFailed):
        print(f"\nInterrupted. Run the same command again to resume {resumes}.", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):  # `head` has read enough; Python would flush once more at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    known = known_error(error)
    if known is None:
        return None
    if debug:
        print_traceback(known)
    print(f"error: {for_terminal(str(known))}", file=sys.stderr)
    return 2


def for_terminal(text: str) -> str:
    """The text in one line that a terminal only shows: names in files may hold control characters, or have no end."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(text.split()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def print_traceback(error: BaseException) -> None:
    """With the causes that `raise ... from None` hides."""
    for cause in causes(error):
        cause.__suppress_context__ = False
    traceback.print_exception(error)


class Interrupt:
    """The handler of SIGINT and SIGTERM while a command runs."""

    def __init__(self) -> None:
        self.process, self.received = os.getpid(), False

    def __call__(self, number, frame) -> None:
        if os.getpid() != self.process:  # a worker of the data loader, which inherits this handler
            os._exit(0)
        self.received = True
        # A signal to all processes of a job ends the data loader's workers too: torch would raise at their end, and
        # errors of destructors after an interrupt tell nobody anything.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        sys.unraisablehook = lambda unraisable: None
        signal.alarm(2)  # once more, should a destructor swallow what is raised now
        raise KeyboardInterrupt


@contextmanager
def interrupts() -> Iterator[Interrupt]:
    """Handle SIGINT and SIGTERM (Slurm's notice that time is up) within; earlier handlers come back at the end.

    After an interrupt the process is about to end, so SIGCHLD and errors in destructors stay silenced.
    """
    handler, before = Interrupt(), {}
    for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM):
        before[number] = signal.getsignal(number)
        if number == signal.SIGALRM or before[number] != signal.SIG_IGN:  # as nohup and background jobs have it
            signal.signal(number, handler)
    try:
        yield handler
    finally:
        signal.alarm(0)
        for number, earlier in before.items():
            signal.signal(number, earlier)
