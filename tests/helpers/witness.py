"""A witness of what a command does outside its folder."""

import os
import sys
from typing import Any

STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn")
CHANGES = {
    "os.rename": 2,
    "os.link": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.truncate": 1,
    "os.chmod": 1,
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Witness:
    """An audit hook that notes what happens while it watches a folder: files changed elsewhere,
    processes, code, connections, and files that are opened though their path has a forbidden part.
    """

    folder = ""
    forbidden: tuple[str, ...] = ("evil",)

    def __init__(self):
        self.seen: list[str] = []
        sys.addaudithook(self.see)  # for the rest of the process

    def see(self, event: str, arguments: tuple) -> None:
        if not self.folder:
            return
        if event == "open" and any(part in str(arguments[0]) for part in self.forbidden):
            self.seen.append(f"opens {arguments[0]!r}")
        if event == "open" and (arguments[2] & WRITING if isinstance(arguments[2], int) else False):
            self.change(event, arguments[0])
        elif event == "socket.getaddrinfo" or (
            event == "socket.connect" and isinstance(arguments[1], tuple)
        ):
            self.seen.append(f"{event} {arguments[1:]!r}"[:300])
        elif event in CHANGES:
            for path in arguments[: CHANGES[event]]:
                self.change(event, path)
        elif event.startswith(STARTS):
            self.seen.append(f"{event} {arguments!r}"[:300])
        elif event == "exec" and arguments[0].co_filename in ("<unicode string>", "<unknown>"):
            self.seen.append(f"runs {arguments[0].co_filename}")

    def change(self, event: str, path: Any) -> None:
        if isinstance(path, int):
            return
        real = os.path.realpath(os.path.dirname(os.fsdecode(path)) or ".")
        if not f"{real}/".startswith((self.folder, "/dev/")) and "__pycache__" not in real:
            self.seen.append(f"{event} {path!r}")
