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


class Handler(BaseHTTPRequestHandler):
    """`server.models` has the files of each model by name, `server.large` uploaded files by their SHA-256, and
    `server.fault` a status and content for all questions about models."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self.of_model(found[1], found[2])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            content = self.server.models[found[1]][found[3]]
            etag = hashlib.sha256(content).hexdigest()
            return self.answer(200, content, {"X-Repo-Commit": self.server.commit(found[1]), "ETag": f'"{etag}"'})
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
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            known = name in self.server.models
            self.server.models.setdefault(name, {})
            self.server.created.append(asked)
            return self.answer(409 if known else 200, {"url": f"{self.server.address}/{name}"})
        if path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {file: "regular" if file.endswith((".json", ".md")) else "lfs" for file in files}
            return self.answer(
                200, {"files": [{"path": f, "uploadMode": modes[f], "shouldIgnore": False} for f in files]}
            )
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.answer(
                200,
                {
                    "transfer": "basic",
                    "objects": [
                        item | {"actions": {"upload": {"href": f"{self.server.address}/large/{item['oid']}"}}}
                        for item in json.loads(body)["objects"]
                    ],
                },
            )
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self.commit(self.server.models[found[1]], [json.loads(line) for line in body.splitlines()])
            commit = self.server.commit(found[1])
            return self.answer(200, {"commitOid": commit, "commitUrl": f"{self.server.address}/{found[1]}"})
        return self.answer(404)

    def commit(self, files: dict[str, bytes], operations: list[dict]) -> None:
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        return self.answer(200)

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
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.models, self.large, self.sizes = {}, {}, {}
        self.requests, self.created, self.fault = [], [], ()

    def commit(self, name: str) -> str:
        """The hash of the newest commit of a model."""
        files = self.models[name]
        return hashlib.sha1(b"".join(file.encode() + files[file] for file in sorted(files))).hexdigest()


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    with running(server):
        yield server
