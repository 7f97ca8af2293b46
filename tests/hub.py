"""A stand-in for the Hugging Face Hub on the loopback address, as far as models are downloaded and uploaded."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from serving import running

TOKEN = "hf_stand_in"
MODEL = r"/api/models/([^/]+/[^/]+)"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append(self.path)
        path = self.path.partition("?")[0]
        if found := re.fullmatch(rf"{MODEL}(?:/revision/(.+))?", path):
            return self.of_model(found[1], found[2])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            content = self.server.models[found[1]][found[3]]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.answer(200, content, {"X-Repo-Commit": self.server.commit(found[1]), "ETag": etag})
        return self.answer(404)

    do_HEAD = do_GET

    def of_model(self, name: str, revision: str | None):
        if self.server.fault:
            return self.answer(*self.server.fault)
        if name not in self.server.models:
            return self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
        commit = self.server.commit(name)
        if revision not in (None, "main", commit):
            return self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        sizes = {file: len(content) for file, content in self.server.models[name].items()} | self.server.sizes
        files = [{"rfilename": file, "size": size} for file, size in sizes.items()]
        return self.answer(200, {"id": name, "sha": commit, "siblings": files})

    def do_POST(self):
        self.server.requests.append(self.path)
        lines = [json.loads(line) for line in self.rfile.read(int(self.headers["Content-Length"])).splitlines()]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            name = f"{lines[0]['organization']}/{lines[0]['name']}"
            known = name in self.server.models
            self.server.models.setdefault(name, {})
            self.server.created.append(lines[0])
            return self.answer(409 if known else 200, {"url": f"{self.server.address}/{name}"})
        if self.path.endswith("/preupload/main"):
            how = {"uploadMode": "regular", "shouldIgnore": False}  # the content is in the commit
            return self.answer(200, {"files": [{"path": file["path"]} | how for file in lines[0]["files"]]})
        name = re.match(rf"{MODEL}/commit/main", self.path)[1]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.models[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.server.models[name][value["path"]]
        place = f"{self.server.address}/{name}"
        return self.answer(200, {"commitOid": self.server.commit(name), "commitUrl": place})

    def answer(self, status: int, content=b"", headers=()):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": len(content), "Content-Type": "application/json", **dict(headers)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        """Nothing on stderr."""


class Hub(ThreadingHTTPServer):
    """`models` has the files of each model by name, `sizes` other sizes of files than theirs, and `fault` a status and
    content for all questions about models."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.models, self.sizes, self.requests, self.created, self.fault = {}, {}, [], [], ()

    def commit(self, name: str) -> str:
        """The hash of the newest commit of a model."""
        files = self.models[name]
        return hashlib.sha1(b"".join(file.encode() + files[file] for file in sorted(files))).hexdigest()


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    with running(server):
        yield server
