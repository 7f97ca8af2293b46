"""Limits of the web server: requests, bytes that have arrived, its names, and proxies."""

import socket
import time
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection

import pytest
from visitors import served

pytest.importorskip("fastapi", reason="fastapi is not installed (requirements-api.txt)")
from starlette.requests import Request  # noqa: E402, RUF100
from starlette.responses import PlainTextResponse  # noqa: E402, RUF100

from inference.serving import command as serve_command  # noqa: E402, RUF100
from inference.serving import limits, server  # noqa: E402, RUF100

STALLED = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40000000\r\n\r\n{"


async def echo(scope, receive, send):
    """Answer with the scheme and the number of bytes that were sent."""
    if scope["type"] == "http":
        request = Request(scope, receive)
        size = len(await request.body())
        await PlainTextResponse(f"{request.url.scheme} {size}")(scope, receive, send)


def gated(app=echo, largest=1 << 30):
    return limits.Gate(app, lambda _: largest, lambda status, text: PlainTextResponse(text, status))


def ask(port, body=None, address="127.0.0.1", **headers):
    """The status and the text of an answer."""
    with closing(HTTPConnection("127.0.0.1", port, 10, (address, 0))) as connection:
        connection.request("GET" if body is None else "POST", "/", body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_an_address_of_ipv6_is_served():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with served(echo, host="::1") as port, closing(HTTPConnection("::1", port, 10)) as connection:
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"http 0"
    assert server.address_of("::1", port) == f"[::1]:{port}"


@contextmanager
def stall(port, number, data):
    """Connections that send no more than `data`."""
    with ExitStack() as stack:
        for _ in range(number):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            connection.sendall(data)
        time.sleep(0.1)
        yield


def test_one_request_too_many_is_refused_and_a_later_one_answered(monkeypatch):
    monkeypatch.setattr(server, "MOST", 3)
    with served(gated()) as port:
        with stall(port, 2, STALLED):
            assert ask(port)[0] == 503
        time.sleep(0.1)
        assert ask(port)[0] == 200


def test_received_bytes_have_a_limit_and_are_given_back(monkeypatch):
    monkeypatch.setattr(limits, "ALL_BYTES", 1000)
    with served(gated()) as port:
        assert [ask(port, bytes(600))[0] for _ in range(9)] == [200] * 9  # one after another
        assert [ask(port, bytes(1001))[0] for _ in range(9)] == [503] * 9
        assert ask(port, bytes(1000)) == (200, "http 1000")


def test_a_proxy_alone_says_the_scheme():
    forwarded = {"X-Forwarded-For": "9.9.9.9", "X-Forwarded-Proto": "https"}
    with served(echo, "127.0.0.2/32") as port:
        assert ask(port, b"", "127.0.0.2", **forwarded) == (200, "https 0")
        assert ask(port, b"", "127.0.0.1", **forwarded) == (200, "http 0")


@pytest.mark.parametrize("host", ["localhost:1", "LOCALHOST", "192.168.1.2", "[::1]:80"])
def test_localhost_and_addresses_are_names_of_the_server(host):
    with served(echo) as port:
        assert ask(port, Host=host)[0] == 200


def test_the_server_has_the_names_of_host_and_machine():
    app = server.OwnHost(echo, "Photos.lab.example")
    assert app.is_own("photos.lab.example:7860") and app.is_own(socket.gethostname())


def test_a_proxy_sends_any_name():
    with served(echo, "127.0.0.1/32") as port:
        assert ask(port, Host="models.lab.example")[0] == 200


def test_a_wrong_proxy_is_an_error(command):
    done = command(serve_command, "--proxy", "localhost", "--classes", "a", "b")
    assert done.status == 2 and "expected an address, or a network" in str(done.errors)
