"""The web server of the page, the API and the page to label on: uvicorn with limits."""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from socket import gethostname
from urllib.parse import urlsplit

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from common.errors import UsageError

MOST = 512  # connections with and without a request: more get 503
GRACE = 5  # seconds for open requests when the server ends


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
        proxies: addresses or networks of reverse proxies, whose X-Forwarded-Proto and -For are
            trusted. They decide which names the server has.
        grace: seconds for open requests when the server ends.
    """

    def __init__(self, app: ASGIApp, host: str, proxies: Sequence[str] = (), grace: float = GRACE):
        self.grace = grace
        config = uvicorn.Config(
            app if proxies else OwnHost(app, host),
            loop="asyncio",
            http="h11",
            ws="none",
            log_level="warning",
            access_log=False,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=list(proxies),
            server_header=False,
            limit_concurrency=MOST,
            timeout_graceful_shutdown=round(grace) + 1,
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: a page in a browser keeps its connection as long as it is shown."""
        asyncio.get_running_loop().call_later(self.grace, self.close_connections)
        await super().shutdown(sockets)

    def close_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """A socket for the server; UsageError if the host or the port cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
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
