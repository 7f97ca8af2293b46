"""A `python` that starts scripts without delay, as a fork of a process with their libraries
imported.

Signals do not reach the script, so a test that interrupts or kills uses `sys.executable`.
"""

import ast
import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer

from serving import running

LIBRARIES = [
    "numpy",
    "open_clip",
    "PIL.Image",
    "torch",
    "torch.utils.tensorboard",
    "torchvision",
    "yacs.config",
]

# Its arguments, folder, variables and process id go to the socket; its exit status comes back.
CLIENT = """#!{python} -IS
import os, socket, sys
if sys.argv[1].startswith("-"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    server.sendall(repr((sys.argv, os.getcwd(), dict(os.environ), os.getpid())).encode())
    server.shutdown(socket.SHUT_WR)
    status = int(server.recv(10))
sys.exit(128 - status if status < 0 else status)
"""


@contextmanager
def forking_python(folder: Path) -> Iterator[Path]:
    """The path of such a `python`; its files are in an existing folder."""
    address = str(folder / "socket")
    program = folder / "python"
    program.write_text(CLIENT.format(python=sys.executable, address=address))
    program.chmod(0o755)
    server = ThreadingUnixStreamServer(address, Handler)
    server.daemon_threads = True  # the end does not wait for scripts
    with running(server):
        yield program


class Handler(StreamRequestHandler):
    def handle(self):
        context = get_context("forkserver")
        context.set_forkserver_preload(LIBRARIES)
        process = context.Process(
            target=run_script, args=ast.literal_eval(self.rfile.read().decode())
        )
        process.start()
        process.join()
        self.wfile.write(str(process.exitcode).encode())


def run_script(command: list[str], folder: str, variables: dict[str, str], client: int) -> None:
    for number in (1, 2):
        os.dup2(os.open(f"/proc/{client}/fd/{number}", os.O_WRONLY | os.O_APPEND), number)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115 - until the process ends
    sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
        2, "w", buffering=1, errors="backslashreplace", closefd=False
    )
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    script = Path(command[1]).absolute()
    given = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    installed = (path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix)))
    sys.path[:] = [str(script.parent), *given, *installed]
    sys.executable, *sys.argv[:] = command
    runpy.run_path(str(script), run_name="__main__")
