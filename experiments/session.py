"""A command from its start to its exit status: errors in one line, Ctrl-C and SIGTERM as a clean end."""

import atexit
import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from common.errors import UsageError, one_line

INTERRUPTED = 130  # exit status, as of a shell
RESUMES = "from the last complete epoch"
LONGEST = 2000  # characters of an error: the fault comes first, the remedy last
BATCH = "lower the batch size (of tools/predict.py: --batch-size; of a run: DATALOADER.{TRAIN_X,TEST}.BATCH_SIZE)"
WORKERS = "lower DATALOADER.NUM_WORKERS"
LESS_TEXT = "or set MODEL.BACKBONE.CHECKPOINT_TEXT True"
# Words in the text of an error, what the machine lacks, and the remedy. The first row that fits counts.
ON_GPU = "CUDA (error: )?out of memory|CUBLAS_STATUS_ALLOC_FAILED"
ON_CPU = "allocate memory|MemoryError|DataLoader worker .*(killed by signal|exited unexpectedly)"
SHORTAGES = (
    (ON_GPU, "the memory of the GPU is full", f"{BATCH}, {LESS_TEXT}"),
    ("shared memory|Bus error|file </torch_", "the shared memory is full", f"{WORKERS}, or make /dev/shm larger"),
    (ON_CPU, "the memory is full", f"{BATCH}, {WORKERS}, {LESS_TEXT}"),
    ("Too many open files", "too many files are open", f"raise the limit by `ulimit -n 4096`, or {WORKERS}"),
    ("No space left on device", "the disk is full", "free some space, then run the same command again"),
)
# Words in the text of an OSError, and the remedy.
PLACES = {
    "File exists": "move that file away, or choose another folder",
    "Not a directory": "move the file of that name away, or choose another folder",
    "File name too long": "choose a shorter path (of a run: --output-dir; for scripts: OUT)",
    "Read-only file system": "choose another folder",
}


def run_command(main: Callable[[], None], resumes: str = RESUMES) -> None:
    """`cli_main` as the last call of a process, which it ends with the exit status.

    It skips Python's own end, as multiprocessing does: torch has so many objects that this takes most of a second.
    """
    sys.unraisablehook = interrupt_again
    # None if the caller has closed it, as by `>&-`: a file that a run opens would also get its number.
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    try:
        cli_main(main, resumes)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    for number in (signal.SIGINT, signal.SIGTERM):  # from here on there is nothing to interrupt
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: os._exit(status))
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
            stream.flush()
    os._exit(status)


def cli_main(main: Callable[[], None], resumes: str = RESUMES) -> None:
    """Run `main`. User errors become one line (exit status 2), Ctrl-C and SIGTERM a clean end (130).

    `--debug` on the command line, or MPL_DEBUG=1, shows the traceback of an error, causes included.

    Args:
        resumes: where the same command resumes after an interrupt.
    """
    debug = "--debug" in sys.argv or os.environ.get("MPL_DEBUG", "") not in ("", "0")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack a letter, and file names may be bytes
    handle_interrupts()
    try:
        main()
        sys.stdout.flush()
    except BaseException as error:
        status = exit_status(error, resumes, debug)
        if status is None:
            raise
        sys.exit(status)


def handle_interrupts() -> None:
    """From now on SIGTERM (Slurm's notice that time is up) raises KeyboardInterrupt, as Ctrl-C does."""
    process = os.getpid()

    def interrupt(number, frame) -> None:
        if os.getpid() != process:  # a worker of the data loader, which inherits this handler and has nothing to say
            os._exit(0)
        # torch's handler raises when a signal has ended a worker too. Python reports a default one as a race.
        signal.signal(signal.SIGCHLD, lambda *caught: None)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as background jobs have it
            signal.signal(number, interrupt)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Within it, Ctrl-C and SIGTERM wait for its end. It is for the main thread."""
    caught: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, lambda signum, frame: caught.append(signum))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def interrupt_again(found: "sys.UnraisableHookArgs") -> None:
    """Python drops what is raised while it deletes an object. An interrupt is repeated soon, elsewhere."""
    if isinstance(found.exc_value, KeyboardInterrupt):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(found)


def exit_status(error: BaseException, resumes: str, debug: bool) -> int | None:
    """Print the error in one line; returns the exit status, None for a bug and for `sys.exit`."""
    # An interrupt may have led to other errors, such as that of a worker of the data loader that has ended.
    if any(isinstance(each, KeyboardInterrupt) for each in exception_chain(error)):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would change the exit status
        print(f"\nInterrupted. Run the same command again to resume {resumes}.", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):  # `head` has read enough; Python would flush once more at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    known = user_error(error)
    if known is None:
        return None
    if debug:
        for cause in exception_chain(error):
            cause.__suppress_context__ = False  # also those that `raise ... from None` hides
        traceback.print_exception(error)
    print(f"error: {for_terminal(str(known))}", file=sys.stderr)
    return 2


def user_error(error: BaseException) -> Exception | None:
    """The error to print in one line: the user can fix it, or the machine lacks something. None for a bug."""
    if isinstance(error, UsageError):
        return error
    for cause in exception_chain(error) if isinstance(error, Exception) else ():
        text = f"{type(cause).__name__}: {cause}"
        for words, what, remedy in SHORTAGES:
            if isinstance(cause, RuntimeError | OSError | MemoryError) and re.search(words, text):
                return UsageError(f"{what} ({one_line(cause)})", remedy)
    if isinstance(error, OSError):
        return UsageError(str(error), next((remedy for words, remedy in PLACES.items() if words in str(error)), ""))
    return error if isinstance(error, FloatingPointError) else None


def exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, also those that `raise ... from None` hides."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def for_terminal(text: str) -> str:
    """The text in one line that a terminal only shows: names in files may hold control characters, or have no end."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(text.split()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
