"""A fit in a process of its own."""

from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from common.errors import UsageError
from common.processes import end_with_parent

from ..command import main


class FitApart:
    """The process of one fit at a time."""

    process: SpawnProcess | None = None

    def run(self, arguments: list[str]) -> None:
        """Wait for `tools/fit.py` with these arguments.

        Raises:
            UsageError: it failed; the text is its own.
        """
        context = get_context("spawn")
        receiving, sending = context.Pipe(duplex=False)
        self.process = context.Process(target=fit, args=(arguments, sending))
        self.process.start()
        sending.close()
        try:
            fault = receiving.recv()
        except EOFError:
            fault = "the fit was cut off: the terminal of this server may say why"
        self.process.join()
        if fault:
            raise UsageError(fault)

    def end(self) -> None:
        """Interrupt the fit; the same fit again resumes."""
        if self.process:
            self.process.terminate()


def fit(arguments: list[str], answer: Connection) -> None:
    """Send the fault, or an empty text."""
    end_with_parent()  # or the fit of a killed server would keep the next one from its folder
    try:
        main(arguments)
    except KeyboardInterrupt:  # Ctrl-C is for the server, too
        return
    except UsageError as error:
        answer.send(str(error))
    else:
        answer.send("")
