"""Limits of the web server: connections, heads, bytes that have arrived, the log, and proxies."""

import asyncio
import logging
import resource
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection

import pytest
from visitors import served

pytest.importorskip("fastapi", reason="fastapi is not installed (requirements-api.txt)")
from starlette.exceptions import HTTPException  # noqa: E402, RUF100
from starlette.requests import Request  # noqa: E402, RUF100
from starlette.responses import PlainTextResponse  # noqa: E402, RUF100

from inference.serving import command as serve_command  # noqa: E402, RUF100
from inference.serving import limits, server  # noqa: E402, RUF100

HALF = b"GET / HTTP/1.1\r\nHost: localhost"
STALLED = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40000000\r\n\r\n{"


async def echo(scope, receive, send):
    """Answer with the address of the visitor and the number of bytes that were sent."""
    if scope["type"] == "http":
        request = Request(scope, receive)
        size = len(await request.body())
        await PlainTextResponse(f"{request.client.host} {size}")(scope, receive, send)


def gated(app=echo, largest=1 << 30):
    return limits.Gate(app, lambda _: largest, lambda status, text: PlainTextResponse(text, status))


def ask(port, body=None, address="127.0.0.1", **headers):
    """The status and the text of an answer."""
    with closing(HTTPConnection("127.0.0.1", port, 10, (address, 0))) as connection:
        connection.request("GET" if body is None else "POST", "/", body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


@pytest.fixture
def stall():
    """`stall(port, number, data, *addresses)`: connections that send no more than `data`."""
    with ExitStack() as stack:

        def connect(port, number, data, *addresses):
            found = []
            for index in range(number):
                source = addresses[index % len(addresses)], 0
                each = socket.create_connection(("127.0.0.1", port), 10, source)
                found.append(stack.enter_context(each))
                each.sendall(data)
            return found

        yield connect


def until_closed(connection):
    """What the server sends until it closes a connection, which it does within seconds."""
    connection.settimeout(5)
    found = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(999):
            found += part
    return found


def test_an_address_of_ipv6_is_served():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with served(echo, host="::1") as port, closing(HTTPConnection("::1", port, 10)) as connection:
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"::1 0"
    assert server.address_of("::1", port) == f"[::1]:{port}"


def test_connections_of_an_address_have_a_limit_and_new_ones_are_answered(stall):
    with served(echo) as port:
        silent = stall(port, 3 * server.MOST_OF_ADDRESS, HALF, "127.0.0.2")
        assert ask(port, address="127.0.0.2") == (200, "127.0.0.2 0")
        oldest = silent[: 2 * server.MOST_OF_ADDRESS]
        assert {until_closed(connection) for connection in oldest} == {b""}
        assert ask(port)[0] == 200


@pytest.mark.parametrize("data", [b"", HALF, STALLED])
def test_connections_of_all_have_a_limit_and_new_ones_are_answered(data, stall, monkeypatch):
    monkeypatch.setattr(server, "MOST", 10)
    with served(gated()) as port:
        silent = stall(port, 50, data, *(f"127.0.0.{number}" for number in range(2, 12)))
        assert {until_closed(connection) for connection in silent[:30]} == {b""}
        assert [ask(port, b"body") for _ in range(11)] == [(200, "127.0.0.1 4")] * 11


def test_a_head_has_some_seconds_to_arrive(stall, monkeypatch):
    monkeypatch.setattr(server, "HEAD", 0.3)

    async def slow(scope, receive, send):
        if scope["type"] == "http":
            await asyncio.sleep(1)
            await echo(scope, receive, send)

    with served(slow) as port:
        first, second = stall(port, 2, HALF, "127.0.0.1")
        second.sendall(b"\r\n\r\n")
        start = time.monotonic()
        assert until_closed(first) == b"" and time.monotonic() - start < 0.9
        beginning = second.recv(9)  # its head was complete
        second.sendall(HALF)
        assert (beginning + until_closed(second)).count(b"HTTP/1.1 200") == 1


ONE = """
import sys
sys.path[:0] = {paths!r}
from inference.serving.server import Server, listen
from test_serve_limits import echo
with listen("127.0.0.1", 0) as listening:
    print(listening.getsockname()[1], flush=True)
    Server(echo, "127.0.0.1").run([listening])
"""


@pytest.mark.thorough
def test_more_connections_than_files_leave_others_answered_and_the_log_small(stall):
    """asyncio logged each failed accept: 1.3 MB a second, and nobody was answered."""
    code = ONE.format(paths=sys.path)
    command = ["bash", "-c", 'ulimit -n 100 && exec "$0" -c "$1"', sys.executable, code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        port = int(process.stdout.readline())
        stall(port, 300, HALF, *(f"127.0.0.{number}" for number in range(2, 12)))
        assert [ask(port)[0] for _ in range(5)] == [200] * 5
        process.kill()
        assert len(process.stderr.read()) < 10_000


def test_the_limit_of_files_is_raised():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
    try:
        assert server.file_limit() == hard == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_equal_lines_are_logged_once_a_minute(caplog, monkeypatch):
    log = logging.getLogger("test of Seldom")
    log.addFilter(server.Seldom())
    for number in range(1000):
        log.error("no more files\nsocket: %s", number)
        log.error("another fault", exc_info=(OSError if number % 2 else ValueError)("x"))
    assert len(caplog.records) == 3
    monkeypatch.setattr(server, "SELDOM", 0)
    log.error("no more files\nsocket: 1")
    assert len(caplog.records) == 4


def test_announced_bytes_do_not_count(stall, monkeypatch):
    """300 requests of 100 addresses that sent a byte of 40 kB filled the budget of all."""
    monkeypatch.setattr(limits, "ALL_BYTES", 40_000_002)
    with served(gated()) as port:
        stall(port, 20, STALLED, "127.0.0.2", "127.0.0.3")
        time.sleep(0.1)
        assert ask(port, bytes(99)) == (200, "127.0.0.1 99")


@pytest.mark.parametrize(("limit", "status"), [("BYTES_OF_ADDRESS", 429), ("ALL_BYTES", 503)])
def test_bytes_that_have_arrived_have_a_limit_and_are_given_back(limit, status, monkeypatch):
    monkeypatch.setattr(limits, limit, 1000)
    gate = gated()
    with served(gate) as port:
        assert [ask(port, bytes(600))[0] for _ in range(9)] == [200] * 9  # one after another
        assert [ask(port, bytes(1001))[0] for _ in range(9)] == [status] * 9
        assert ask(port, bytes(1000)) == (200, "127.0.0.1 1000")
    assert not gate.bytes and not gate.requests and gate.all_bytes == 0


def test_a_refused_request_makes_room_for_others_at_once(monkeypatch):
    """Six requests that were too much together were all refused."""
    monkeypatch.setattr(limits, "ALL_BYTES", 200)
    scope = {"type": "http", "method": "POST", "client": None}

    async def app(scope, receive, send):
        status = 200
        try:
            await receive()
            await asyncio.sleep(0.01)
            await receive()
            await asyncio.sleep(0.01)
        except HTTPException as error:
            status = error.status_code
            await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": status})

    async def ask_many():
        statuses = []

        async def receive():
            return {"type": "http.request", "body": bytes(30)}

        async def send(message):
            statuses.append(message["status"])

        asked = scope | {"headers": [(b"content-length", b"60")]}
        gate = gated(app)
        await asyncio.gather(*(gate(asked, receive, send) for _ in range(6)))
        return sorted(statuses)

    assert asyncio.run(ask_many()) == [200] * 3 + [503] * 3


def test_a_request_that_takes_too_long_gets_one_answer(monkeypatch):
    """Another one was sent after an answer that had begun."""
    monkeypatch.setattr(limits, "SLOWEST", 0.1)
    headers = [(b"content-length", b"0")]
    scope = {"type": "http", "method": "POST", "client": None, "headers": headers}

    async def app(scope, receive, send):
        if begins:
            await send({"type": "http.response.start", "status": 200})
        await asyncio.sleep(9)

    async def statuses():
        sent = []

        async def send(message):
            sent.append(message.get("status"))

        await gated(app)(scope, None, send)
        return sent

    begins = True
    assert asyncio.run(statuses()) == [200]
    begins = False
    assert asyncio.run(statuses()) == [408, None]


def test_a_proxy_says_whose_request_it_is(stall):
    forwarded = {"X-Forwarded-For": "1.1.1.1, 9.9.9.9"}
    with served(gated(), "127.0.0.2/32") as port:
        assert ask(port, b"", "127.0.0.2", **forwarded) == (200, "9.9.9.9 0")
        assert ask(port, b"", "127.0.0.1", **forwarded) == (200, "127.0.0.1 0")  # it is no proxy
        stall(port, limits.MOST_REQUESTS, STALLED, "127.0.0.2")
        assert ask(port, b"", "127.0.0.2")[0] == 429
        assert ask(port, b"", "127.0.0.2", **forwarded) == (200, "9.9.9.9 0")


def test_a_visitor_has_a_network_of_ipv6():
    first, second = map(server.visitor_of, ("2001:db8::1", "2001:db8::ffff:1"))
    assert first == second != server.visitor_of("2001:db8:0:1::1")
    assert server.visitor_of("10.0.0.1") == "10.0.0.1" != server.visitor_of("10.0.0.2")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "["]
)
def test_another_name_than_the_servers_is_refused(host):
    """A site whose name leads to this machine read what only this machine may."""
    with served(echo) as port:
        status, text = ask(port, Host=host)
    assert status == 403 and "Host is another server's name" in text


@pytest.mark.parametrize("host", ["localhost:1", "LOCALHOST", "192.168.1.2", "[::1]:80"])
def test_localhost_and_addresses_are_names_of_the_server(host):
    with served(echo) as port:
        assert ask(port, Host=host)[0] == 200


def test_the_name_of_host_and_that_of_the_machine_are_the_servers():
    app = server.OwnHost(echo, "Photos.lab.example")
    assert app.is_own("photos.lab.example:7860") and app.is_own(socket.gethostname())


def test_a_proxy_sends_any_name():
    with served(echo, "127.0.0.1/32") as port:
        assert ask(port, Host="models.lab.example")[0] == 200


def test_a_wrong_proxy_is_an_error(command):
    done = command(serve_command, "--proxy", "localhost", "--classes", "a", "b")
    assert done.status == 2 and "expected an address, or a network" in str(done.errors)
