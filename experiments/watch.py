"""The facts that ranks of a run know of one another: which of them has ended, and why."""

import json
import os
import secrets
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import Any

from common.errors import UsageError

ARRIVAL = 300.0  # seconds until all ranks must be there
GRACE = 3.0  # seconds for an ordinary end, after another rank has failed
TOKEN = 32  # bytes
SIGNAL = signal.SIGUSR1
REMEDY = "run the same command again to resume from the last complete epoch"


class RankLost(BaseException):
    """Raised in the main thread when another rank has failed; not an error of the run itself, which may catch these."""


class OtherRankFailed(UsageError):
    """Raised at the end of a rank that another one has stopped."""


class Watch:
    """A connection between rank 0 and each other rank, which the system closes when a process ends, however it does.

    The last message on a connection says how; there is none if the process was killed.

    Args:
        store: a store of torch.distributed, by which the ranks find the port.
        rank, count: as torch.distributed has them.
        clean: called before this process is ended at once.

    Attributes:
        ending: set when this process leaves by itself.
        lost: set when another rank has failed; `reason` then says which one, and why, and `interrupted` whether by an
            interrupt.
        prints: whether this rank prints that.
        ignores_signal: whether the signal of the watch does nothing now.

    Raises:
        OSError: a rank did not come.
    """

    def __init__(self, store: Any, rank: int, count: int, clean: Callable[[], None]):
        self.clean, self.rank, self.ending, self.lost = clean, rank, Event(), Event()
        self.reason, self.interrupted, self.prints, self.ignores_signal = "", False, rank == 0, False
        self.peers = self.wait_for_others(store, count) if rank == 0 else {0: self.connect(store)}
        for connection in self.peers.values():
            keep_alive(connection)
        os.register_at_fork(after_in_child=self.close)  # workers of a data loader outlive this process for seconds
        self.before = signal.signal(SIGNAL, self.interrupt)
        Thread(target=self.listen, daemon=True).start()

    def wait_for_others(self, store: Any, count: int) -> dict[int, socket.socket]:
        """On rank 0: the connections of all others."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        peers: dict[int, socket.socket] = {}
        with socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=count) as server:
            token, deadline = secrets.token_hex(TOKEN // 2), time.monotonic() + ARRIVAL
            store.set("watch", json.dumps([server.getsockname()[1], token]))
            while len(peers) < count - 1:
                server.settimeout(max(0.1, deadline - time.monotonic()))
                connection, _ = server.accept()
                connection.settimeout(10)
                greeting = self.greeting_of(connection)
                if greeting.startswith(token.encode()) and greeting[TOKEN:].isdigit():  # not an unknown client
                    connection.settimeout(None)
                    peers[int(greeting[TOKEN:])] = connection
                else:
                    connection.close()
        return peers

    def greeting_of(self, connection: socket.socket) -> bytes:
        """The token and the rank, in six digits, that a rank sends first."""
        greeting = b""
        try:
            while len(greeting) < TOKEN + 6 and (more := connection.recv(TOKEN + 6 - len(greeting))):
                greeting += more
        except OSError:
            pass
        return greeting

    def connect(self, store: Any) -> socket.socket:
        port, token = json.loads(store.get("watch"))
        connection = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=ARRIVAL)
        connection.sendall(f"{token}{self.rank:06}".encode())
        connection.settimeout(None)
        return connection

    def listen(self) -> None:
        """In a thread: wait for the ends of other ranks."""
        messages = dict.fromkeys(self.peers, b"")
        with selectors.DefaultSelector() as selector:
            for peer, connection in self.peers.items():
                selector.register(connection, selectors.EVENT_READ, peer)
            while selector.get_map():
                for key, _ in selector.select():
                    connection, peer = self.peers[key.data], key.data
                    try:
                        more = connection.recv(1 << 16)
                    except OSError:
                        more = b""
                    messages[peer] += more
                    if not more:
                        selector.unregister(connection)
                        self.ended(peer, messages[peer])

    def ended(self, peer: int, message: bytes) -> None:
        """In the thread: handle the end of another rank."""
        try:
            said = json.loads(message)
        except ValueError:  # none, or a part of one
            message, said = b"", {"error": f"rank {peer} was killed: {REMEDY}"}
        # All may have the same error: then each ends by itself, and the first one's is printed.
        if not said or self.lost.is_set() or (message and self.ending.wait(1.0)):
            return
        self.prints = self.prints or (self.rank == 1 and not message)
        if trace := said.get("trace"):
            print(trace, end="", file=sys.__stderr__)
        self.reason, self.interrupted = said["error"], said.get("interrupted", False)
        self.lost.set()
        os.kill(os.getpid(), SIGNAL)
        if self.ending.wait(GRACE):
            return
        self.send({"error": self.reason})  # this rank waits for the other one where no signal reaches it
        if self.prints:
            print(f"error: {self.reason}", file=sys.__stderr__, flush=True)
        self.clean()
        os._exit(2)

    def interrupt(self, number: int, frame: Any) -> None:
        if self.lost.is_set() and not self.ignores_signal:
            raise RankLost

    def leave(self, error: str | None, trace: str = "", interrupted: bool = False) -> None:
        """End the watch of this rank.

        Args:
            error: why it fails, in one line for another rank to print; None if all is well.
            trace: the traceback, if that is a bug.
            interrupted: whether it fails by an interrupt.
        """
        self.ignores_signal = True
        self.ending.set()
        self.send({} if error is None else {"error": error, "trace": trace, "interrupted": interrupted})
        if not self.lost.is_set():
            signal.signal(SIGNAL, self.before)

    def send(self, message: dict) -> None:
        """The last message to all that this rank is connected with."""
        for connection in self.peers.values():
            with suppress(OSError):  # that rank has ended
                connection.sendall(json.dumps(message).encode())
                connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for connection in self.peers.values():
            connection.close()


def keep_alive(connection: socket.socket) -> None:
    """Let the system notice within half a minute that the other machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # macOS has others
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
