"""A web server on the loopback address with the faults that real servers have."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer

QUOTA_PAGE = (
    b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"
)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        path = self.path.partition("?")[0]
        asked = self.headers.get("Range", "")
        server.requests.append((path, asked))
        fault = server.faults.pop(0) if server.faults else ""
        self.close_connection = True
        if isinstance(fault, bytes):  # a whole answer
            return self.wfile.write(fault)
        if callable(fault):
            return fault(self)
        if path not in server.files or fault == "not found":
            return self.send_error(404)
        if fault == "busy":
            return self.send_error(503)
        content = server.files[path]
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        page = fault == "quota page"
        if page:
            content = QUOTA_PAGE
        if start >= len(content) and not page:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if fault == "no ranges" or page:
            start = 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header(
            "Content-Type", "text/html; charset=utf-8" if page else "application/octet-stream"
        )
        content = content[start:]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return self.wfile.write(content[: len(content) // 2] if fault == "cut off" else content)

    def log_message(self, *args):
        """Nothing on stderr."""


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[ThreadingHTTPServer]:
    """Serve `files` by path. The server has attributes `address`, `faults` (of the next requests)
    and `requests`.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = files
    server.faults = []
    server.requests = []
    server.address = f"http://127.0.0.1:{server.server_port}"
    with running(server):
        yield server


@contextmanager
def running(server: BaseServer) -> Iterator[None]:
    """Answer requests in another thread, until the end."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
