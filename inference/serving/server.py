"""The web server of the page and of the API: uvicorn, with limits of connections and of the log.

An address has a few connections, and a head has some seconds to arrive. Where there are too many
connections, the one that is silent for longest is closed: a client that sends its request at once
is answered.
"""

import asyncio
import logging
import resource
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import ip_address, ip_network
from socket import gethostname
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import h11
import uvicorn
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.errors import UsageError

HEAD = 10  # seconds for the head of a request
MOST_OF_ADDRESS = 64  # connections; a proxy has any number
MOST = 2048  # connections of all
BACKLOG = 256  # connections that are accepted in one step, before too many of them are closed
SPARE = 128  # open files besides connections: uploads, processes that read images
SELDOM = 60  # seconds until a line is logged again
GRACE = 5  # seconds for open requests when the server ends


class Connections:
    """The open connections of a server.

    Args:
        most: how many there may be.
        proxies: networks whose addresses have any number of them.
    """

    def __init__(self, most: int, proxies: Sequence[str] = ()):
        self.most = most
        self.proxies = [ip_network(proxy) for proxy in proxies]
        self.open: dict[Connection, str] = {}  # with the visitor; silent for longest first
        self.number = Counter[str]()  # by visitor

    def add(self, connection: "Connection", address: str) -> None:
        """Note a new connection, and close one if there are too many."""
        visitor = visitor_of(address)
        self.open[connection] = visitor
        self.number[visitor] += 1
        if self.number[visitor] > MOST_OF_ADDRESS and not self.is_proxy(address):
            self.close_one(lambda other: self.open[other] == visitor, connection)
        elif len(self.open) > self.most:
            self.close_one(lambda other: True, connection)

    def close_one(self, is_meant: Callable[["Connection"], bool], newest: "Connection") -> None:
        """Close the connection whose client is silent for longest, or else the newest one."""
        waiting = (each for each in self.open if each.waits_for_client() and is_meant(each))
        next(waiting, newest).transport.abort()

    def note(self, connection: "Connection") -> None:
        """Note that a client has sent something."""
        self.open[connection] = self.open.pop(connection)

    def remove(self, connection: "Connection") -> None:
        visitor = self.open.pop(connection)
        self.number[visitor] -= 1
        if not self.number[visitor]:
            del self.number[visitor]

    def is_proxy(self, address: str) -> bool:
        with suppress(ValueError):
            return any(ip_address(address) in network for network in self.proxies)
        return False

    def close(self) -> None:
        for connection in list(self.open):
            connection.transport.abort()


class Connection(H11Protocol):
    """One of `Connections`, which is closed if the head of a request takes too long."""

    def __init__(self, connections: Connections, **given: Any):
        super().__init__(**given)
        self.all = connections
        self.deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.all.add(self, self.client[0] if self.client else "")
        self.watch()

    def data_received(self, data: bytes) -> None:
        self.all.note(self)
        super().data_received(data)
        self.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.all.remove(self)
        if self.deadline is not None:
            self.deadline.cancel()

    def watch(self) -> None:
        """Begin the time of a head, or end it when the head is there."""
        has_none = self.conn.their_state is h11.IDLE
        if has_none and self.deadline is None:
            self.deadline = self.loop.call_later(HEAD, self.transport.abort)
        elif not has_none and self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def waits_for_client(self) -> bool:
        """Whether the client has still to send something."""
        if self.transport.is_closing():
            return False
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)


class OwnHost:
    """ASGI middleware: refuses a request whose `Host` is another name than this server's.

    A browser sends the name of the site that it shows. A site can let its name lead to this
    machine, and would then read the answers (DNS rebinding). An address is no such name.

    Args:
        name: at which the server listens.
    """

    def __init__(self, app: ASGIApp, name: str):
        self.app = app
        self.names = "localhost", name.lower(), gethostname().lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http" and not self.is_own(Headers(scope=scope).get("host", "")):
            text = "Host is another server's name: use the address, localhost, or --host NAME"
            app = JSONResponse({"error": text}, 403)
        await app(scope, receive, send)

    def is_own(self, authority: str) -> bool:
        try:
            name = urlsplit(f"//{authority}").hostname or ""
        except ValueError:  # an address of IPv6 without its end
            return False
        return name in self.names or is_address(name)


def is_address(name: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(name))
    return False


class Server(uvicorn.Server):
    """A server of an ASGI application.

    Args:
        host: at which it listens: an address or a name.
        proxies: addresses or networks of reverse proxies, whose X-Forwarded-For is trusted. They
            decide which names the server has.
        grace: seconds for open requests when the server ends.
    """

    def __init__(self, app: ASGIApp, host: str, proxies: Sequence[str] = (), grace: float = GRACE):
        self.grace = grace
        limit = file_limit()
        most = max(limit // 2, limit - BACKLOG - SPARE)
        self.all = Connections(min(MOST, most), proxies)
        config = uvicorn.Config(
            app if proxies else OwnHost(app, host),
            loop="asyncio",
            http=partial(Connection, self.all),  # type: ignore[arg-type]
            ws="none",
            log_level="warning",
            access_log=False,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=list(proxies),
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=round(grace) + 1,
        )
        for name in ("asyncio", "uvicorn.error"):
            logging.getLogger(name).addFilter(ONCE_A_MINUTE)
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: a page in a browser keeps its connection as long as it is shown."""
        asyncio.get_running_loop().call_later(self.grace, self.all.close)
        await super().shutdown(sockets)


class Seldom(logging.Filter):
    """Drops a line that was logged lately: a client could fill the disk with errors."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        key = str(record.msg).partition("\n")[0], str(kind)
        if monotonic() - self.last.get(key, -SELDOM) < SELDOM:
            return False
        self.last[key] = monotonic()
        return True


ONCE_A_MINUTE = Seldom()


def visitor_of(address: str) -> str:
    """Whom the limits of an address mean: a client has a whole network of IPv6."""
    with suppress(ValueError):
        given = ip_address(address)
        if given.version == 6:
            return str(ip_network((int(given) >> 64 << 64, 64)))
    return address


def file_limit() -> int:
    """How many files this process may open, after that is raised as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS has a lower limit than the one that it states
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def listen(host: str, port: int) -> socket.socket:
    """A socket for the server; UsageError if the host or the port cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        fault = f"cannot serve at {address_of(host, port)} ({error.strerror or 'it is in use'})"
        raise UsageError(fault, "choose another --port, or check --host") from error
    # without it, a client would acknowledge a head after 40 ms
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def address_of(host: str, port: int) -> str:
    """As in the address of a page, where an address of IPv6 is in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def serve(server: Server, host: str, port: int, greeting: str) -> None:
    """Answer requests until Ctrl-C or SIGTERM; UsageError if host or port cannot be used."""
    with listen(host, port) as listening, suppress(KeyboardInterrupt):
        print(f"{greeting} Ctrl-C ends the server.", flush=True)
        server.run([listening])
    print("\nStopped.")
