"""Runs of train.py as tasks of Ray: on one machine, or on a cluster that shares the folders of data and results."""

import os
import signal
import socket
import sys
from concurrent.futures import Future

from common.errors import UsageError
from common.start import ROOT

from .executor import TRIES
from .spec import Run


def available() -> bool:
    """Whether Ray is installed."""
    try:
        import ray  # noqa: F401
    except ImportError:
        return False
    return True


def answers(address: str) -> None:
    """Raise UsageError if nobody listens at HOST:PORT, for which Ray would wait some minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise UsageError(f"no Ray cluster at {address} ({error}): start one with `ray start --head`") from None


class Cluster:
    """All machines of a Ray cluster, as they come and go. A run whose worker or machine dies is begun again, by Ray.

    Args:
        address: of the cluster's head; by default one that runs on this machine, or else this machine alone.
        cpus: cores, and threads, of a run.
        gpus: of a run, 0.5 to have two share one; by default 1 where there are any.

    Raises:
        UsageError: Ray is not installed, or nothing answers at the address, or a run needs more than any machine has.
    """

    def __init__(self, address: str | None = None, cpus: int = 1, gpus: float | None = None):
        if not available():
            raise UsageError("Ray is not installed: pip install -r requirements-cluster.txt, or leave out --address")
        if address and ":" in address and "://" not in address:
            answers(address)
        self.address, self.cpus, self.gpus = address, cpus, gpus

    def __enter__(self) -> "Cluster":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
        import ray
        from ray import cloudpickle

        self.ray = ray
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers don't know where it is
        stop = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(self.address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(
                f"no Ray cluster at {self.address} ({reason}): start one with `ray start --head`"
            ) from None
        except SystemExit:  # Ray has made one of SIGTERM
            signal.signal(signal.SIGTERM, stop)
            signal.raise_signal(signal.SIGTERM)
            raise
        finally:
            signal.signal(signal.SIGTERM, stop)
        if self.gpus is None:
            self.gpus = float(ray.cluster_resources().get("GPU", 0) >= 1)
        if self.slots() == 1:
            ray.shutdown()
            raise UsageError(f"no machine of this cluster has {self.cpus} cores and {self.gpus:g} GPUs for a run")
        self.task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=TRIES - 1)(on_a_worker)
        return self

    def __exit__(self, *exception) -> None:
        self.ray.shutdown()

    def slots(self) -> int:
        """Runs that all machines alive have room for, and one, so that none is idle until it is told."""
        room = 0
        for node in self.ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            by_gpu = has.get("GPU", 0) / self.gpus if self.gpus else float("inf")
            room += int(min(has.get("CPU", 0) / self.cpus, by_gpu))
        return room + 1

    def submit(self, run: Run) -> Future:
        return self.task.remote(ROOT, os.getcwd(), self.cpus, run.arguments).future()


def on_a_worker(root: str, folder: str, threads: int, arguments: tuple[str, ...]) -> str | None:
    """`tools.execute.work` in a process that knows nothing of this project yet."""
    if root not in sys.path:
        sys.path.insert(0, root)
    os.chdir(folder)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray makes an exception of it, as of a run that fails
    import torch

    from tools.execute import work

    torch.set_num_threads(threads)
    return work(arguments)
