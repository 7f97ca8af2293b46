"""A command from its start to its exit status: errors in one line, Ctrl-C and SIGTERM as a clean end."""

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable

from common.errors import UsageError

from .known_errors import causes, known_error
from .ranks import end_rank, rank_count

INTERRUPTED = 130  # exit status, as of a shell
LONGEST = 2000  # characters of an error: the fault comes first, the remedy last


def cli_main(
    main: Callable[[], None], resumes: str = "from the last complete epoch", several_ranks: bool = False
) -> None:
    """Run `main`. User errors become one line (exit status 2), Ctrl-C and SIGTERM a clean end (130).

    `--debug` on the command line, or MPL_DEBUG=1, shows the traceback of an error, causes included.

    Args:
        main: the command.
        resumes: where the same command resumes after an interrupt.
        several_ranks: whether torchrun may start it on several devices.
    """
    debug = "--debug" in sys.argv or os.environ.get("MPL_DEBUG", "") not in ("", "0")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack a letter, and file names may be bytes
    handle_interrupts()
    try:
        if rank_count() > 1 and not several_ranks:
            raise UsageError("this command does not run on several devices", "start it without torchrun")
        main()
        sys.stdout.flush()
        end_rank(0)
    except BaseException as error:
        status = exit_status(error, resumes, debug)
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            end_rank(error.code)
        if status is None:
            raise
        end_rank(status)
        sys.exit(status)


def handle_interrupts() -> None:
    """From now on SIGTERM (Slurm's notice that time is up) raises KeyboardInterrupt, as Ctrl-C does."""
    process = os.getpid()

    def interrupt(number, frame) -> None:
        if os.getpid() != process:  # a worker of the data loader, which inherits this handler and has nothing to say
            os._exit(0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises when a signal has ended a worker too
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as background jobs have it
            signal.signal(number, interrupt)


def exit_status(error: BaseException, resumes: str, debug: bool) -> int | None:
    """Print the error in one line; returns the exit status, None for a bug and for `sys.exit`."""
    # An interrupt may have led to other errors, such as that of a worker of the data loader that has ended.
    if any(isinstance(each, KeyboardInterrupt) for each in causes(error)):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would change the exit status
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
