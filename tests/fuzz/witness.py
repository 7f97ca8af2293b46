"""An audit hook that sees what a process does outside the folder of its case, and stops it."""

import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch

from common.start import ROOT

# Whose code may run: this project, Python and the installed packages.
CODE = tuple({f"{path}/" for path in (ROOT, sys.prefix, sys.base_prefix, *sysconfig.get_paths().values())})
# Whose texts may become code: those of namedtuple, dataclasses and similar. Never those of readers of files.
MAKERS = ("/collections/__init__.py", "/dataclasses.py", "/enum.py", "/typing.py", "/decorator.py")
MAKERS += ("/scipy/", "/numpy/", "/pandas/", "/torch/", "/matplotlib/", "/jinja2/", "/sklearn/")
READERS = ("/torch/serialization.py", "/torch/_weights_only_unpickler.py", "/torch/jit/", "/numpy/lib/", "/scipy/io/")
# Names in pickles: of tensors, and of what the workers of a data loader send.
CLASSES = ("collections.OrderedDict", "torch._utils._rebuild_tensor", "torch.storage.", "torch.FloatStorage")
CLASSES += tuple(str(value) for value in vars(torch).values() if isinstance(value, torch.dtype))
CLASSES += ("torch.Tensor", "torch.Size", "torch.utils.data.", "torch.serialization.", "torch.multiprocessing.")
CLASSES += ("multiprocessing.", "dassl.data.loader.")
PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn")
# Events that change files, and which of their arguments are the paths.
CHANGES = {"os.rename": (0, 1), "os.link": (0, 1), "os.symlink": (1,)}
CHANGES |= dict.fromkeys(("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown", "os.utime"), (0,))
CHANGES |= dict.fromkeys(("os.setxattr", "os.removexattr"), (0,))
FOLLOWING = ("os.truncate", "os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr")
HARMLESS = ("/dev/null", "/dev/shm/")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Foreign(BaseException):
    """Raised for what a case must not do; no handler of the project catches it."""


class Witness:
    """The hook of a process that runs one case.

    Args:
        folder: where it may write.
        report: called with a line for everything that it must not do.
        ports: of the servers on the loopback address that it may connect to.
    """

    def __init__(self, folder: Path, report: Callable[[str], object], ports: tuple[int, ...] = ()):
        self.folder, self.report, self.ports = f"{os.path.realpath(folder)}/", report, ports

    def start(self) -> None:
        sys.addaudithook(self.see)  # for the rest of the process

    def see(self, event: str, arguments: tuple) -> None:
        wrong = self.judge(event, arguments)
        if wrong:
            self.report(f"{event}: {wrong}")
            raise Foreign(wrong)

    def judge(self, event: str, arguments: tuple) -> str:
        """The fault of an event, or an empty text."""
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else flags & WRITING
            return self.outside(path, follows=not flags & (os.O_NOFOLLOW | os.O_EXCL)) if writes else ""
        if event in CHANGES:
            return "".join(self.outside(arguments[index], event in FOLLOWING) for index in CHANGES[event])
        if event == "exec":
            return foreign_code(arguments[0].co_filename)
        if event == "pickle.find_class":
            name = ".".join(map(str, arguments))
            return "" if name.startswith(CLASSES) else f"a pickle names {name}"
        if event in PROCESSES:
            return f"starts a process: {arguments!r}"[:300]
        if event == "socket.connect":
            return self.connection(arguments[1])
        if event in ("socket.getaddrinfo", "socket.gethostbyname"):
            return "" if arguments[0] in ("127.0.0.1", b"127.0.0.1") else f"looks up {arguments[0]!r}"
        if event == "ctypes.dlopen":
            return "" if arguments[0] is None or str(arguments[0]).startswith((*CODE, "lib")) else f"{arguments[0]!r}"
        return ""

    def outside(self, path: object, follows: bool) -> str:
        """The fault of changing a path. `follows`: a link is not changed itself, but what it leads to."""
        if isinstance(path, int):  # an open file
            return ""
        text = os.fsdecode(path)  # type: ignore[arg-type]
        parent, name = os.path.split(text.rstrip("/") or "/")
        real = os.path.join(os.path.realpath(parent or "."), name)
        allowed = f"{real}/".startswith(self.folder) or real.startswith(HARMLESS)
        return "" if allowed and not (follows and self.leaves(real)) else f"changes {text[:300]!r}"

    def leaves(self, path: str) -> bool:
        """Whether a path in the folder is a link that leads out of it."""
        return os.path.islink(path) and not os.path.realpath(path).startswith((self.folder, *HARMLESS, "/dev/"))

    def connection(self, address: object) -> str:
        if isinstance(address, str):  # a Unix socket, over which the workers of a data loader pass their files
            local = address.startswith(self.folder)
        else:
            local = isinstance(address, tuple) and address[0] == "127.0.0.1" and address[1] in self.ports
        return "" if local else f"connects to {address!r}"


def foreign_code(file: str) -> str:
    """The fault of running code of this file; code without a file is judged by the file that made it."""
    if file.startswith((*CODE, "<frozen ")):
        return ""
    maker = sys._getframe(3).f_code.co_filename
    known = maker.startswith(CODE) and any(part in maker for part in MAKERS)
    if known and not any(part in maker for part in READERS):
        return ""
    return f"runs code of {file!r}, made in {maker}"
