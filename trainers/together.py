"""Several runs side by side in one process, which compute together what they can.

Each run is a function in a thread of its own. Only one thread runs at a time, until its run asks for something that it
shares with others: an output of a tower, a gradient or a batch of test images (together_calls.py). Then the next one
runs. When all of them ask, the requests that fit together are answered at once, for example by one pass of a tower for
the images of all runs, and the runs continue.

A run computes what it would compute alone, up to the rounding of larger matrix products: it has random generators and
a stdout of its own, which are put in place whenever it continues. The order of everything is fixed, so that the same
runs give the same result to the bit.
"""

import random
import sys
from collections.abc import Callable, Sequence
from threading import Semaphore, Thread
from typing import Any, Protocol

import numpy as np
import torch

from clip import CLIP


class Request(Protocol):
    """Something that a run waits for.

    Attributes:
        training: whether a training step needs it, rather than a test.
        waits: whether it is answered only after what else runs at the same place ask for.
    """

    training: bool
    waits: bool

    def fits(self, other: Any) -> bool:
        """Whether it can be answered at once with another request."""

    def answers(self, requests: Sequence[Any]) -> Sequence[Any]:
        """The answers to several requests that fit, this one among them, in their order."""

    def of_absent(self) -> "Request | None":
        """A request of the same size, without gradients, for a run that does not take part; None: it is not missed."""


class Cancelled(BaseException):
    """Raised in a run whose company has ended."""


class NotTogether(Exception):
    """Raised if runs cannot be computed together, because a method differentiates on its own."""


class World:
    """The state that is global in a process, and a run's own: stdout and the random generators."""

    def __init__(self) -> None:
        self.stdout = sys.stdout
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self.generators = random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda

    def enter(self) -> None:
        sys.stdout = self.stdout
        python, numpy, cpu, cuda = self.generators
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


class Member:
    """The place of one run in a company.

    Attributes:
        trainer: of the run; None until it is built (`together_calls.join` sets it).
        error: what its function raised, after the end.
    """

    def __init__(self, company: "Company", function: Callable[["Member"], None], stdout: Any):
        self.company, self.world = company, World()
        self.world.stdout = stdout
        self.turn, self.thread = Semaphore(0), Thread(target=self._run, args=(function,), daemon=True)
        self.request: Request | None = None
        self.place: tuple = ()
        self.answer: Any = None
        self.error: BaseException | None = None
        self.ended = self.cancelled = False
        self.trainer: Any = None

    def _run(self, function: Callable[["Member"], None]) -> None:
        try:
            self._await_turn()
            function(self)
        except Cancelled:
            pass
        except BaseException as error:  # noqa: BLE001 - the company's caller decides about it
            self.error = error
        self.ended = True
        self.company.back.release()

    def _await_turn(self) -> None:
        self.turn.acquire()
        self.world.enter()
        if self.cancelled:
            raise Cancelled

    def ask(self, request: Request) -> Any:
        """Called by the run: wait until the company answers a request. Raises what answering it raised."""
        self.request, self.place = request, (*self.position(request.training), request.waits)
        self.world = World()
        self.company.back.release()
        self._await_turn()
        answer, self.answer = self.answer, None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def position(self, training: bool) -> tuple[int, bool]:
        """How far the run is: its finished epochs, and whether it is in the training steps of the next one."""
        return max(self.trainer.start_epoch, self.trainer.epoch + (not training)), training

    def resumes_ahead(self, place: tuple) -> bool:
        """Whether the run was cut off when it had saved an epoch and runs at `place` had not yet."""
        return self.place[0] == place[0] + 1 == self.trainer.start_epoch

    def proceed(self) -> None:
        """Let the run continue until its next request, or its end."""
        if not self.thread.is_alive():
            self.thread.start()
        self.company.running = self
        self.turn.release()
        self.company.back.acquire()
        self.company.running = None

    def cancel(self) -> None:
        """End the run at its next request, or now if it waits for an answer."""
        self.cancelled = True
        if self.thread.is_alive():
            self.turn.release()
            self.thread.join()


class Company:
    """Runs that compute together what they can.

    Args:
        functions: what each run does; it is called with its `Member`.
        stdouts: where each run prints to.

    Attributes:
        clip: the backbone that all runs use; None until the first of them has loaded it.
        differentiating: whether a gradient for all runs is computed now.
    """

    def __init__(self, functions: Sequence[Callable[[Member], None]], stdouts: Sequence[Any]):
        self.back = Semaphore(0)
        self.members = [Member(self, *each) for each in zip(functions, stdouts, strict=True)]
        self.running: Member | None = None
        self.clip: CLIP | None = None
        self.differentiating = False

    def run(self) -> list[BaseException | None]:
        """Execute the runs. One that raises an exception ends, and the others continue.

        Returns:
            the error of each run, or None.

        Raises:
            NotTogether: one of them cannot take part; all have ended early.
        """
        world = World()
        try:
            while any(not member.ended for member in self.members):
                for member in self.members:
                    if not member.ended and member.request is None:
                        member.proceed()
                    if isinstance(member.error, NotTogether):
                        raise member.error
                self.answer()
        finally:
            # The run that an interrupt has overtaken comes first: until it stops, no other may.
            for member in sorted(self.members, key=lambda member: member is not self.running):
                member.cancel()
            world.enter()
        return [member.error for member in self.members]

    def answer(self) -> None:
        """Answer the requests of the runs that are least far, as many at once as fit together."""
        asking = [member for member in self.members if member.request is not None]
        if not asking:
            return
        first = min(asking, key=lambda member: member.place)
        call = first.request
        assert call is not None
        fitting = [m for m in asking if m.place == first.place and m.request is not None and m.request.fits(call)]
        # The place of a run that is one epoch ahead is filled, so that others compute what they would have computed
        # beside it: rounding depends on sizes. So a resumed company ends as one that was never cut off.
        absent = call.of_absent() if call.training else None
        ahead = [member for member in asking if absent is not None and member.resumes_ahead(first.place)]
        present = [member for member in self.members if member in fitting or member in ahead]
        try:
            answers = call.answers([absent if member in ahead else member.request for member in present])
        except Exception as error:  # noqa: BLE001 - it is the runs' error
            answers = [error] * len(present)
        for member, answer in zip(present, answers, strict=True):
            if member not in ahead:
                member.request, member.answer = None, answer
