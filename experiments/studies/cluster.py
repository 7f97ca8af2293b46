"""Runs as tasks of Ray: on one machine, or on a cluster whose machines share the folders of data and results."""

import os
import signal
import socket
from concurrent.futures import Future
from importlib.util import find_spec

import torch

from clip import keep_backbones
from common.errors import UsageError
from common.start import ROOT

from .executor import execute_run
from .spec import Run

START_HINT = "start one with `ray start --head`"


def available() -> bool:
    """Whether Ray is installed."""
    return find_spec("ray") is not None


class Cluster:
    """Executes runs as `LocalExecutor` does, on all machines of a Ray cluster. Machines may join and leave.

    Args:
        address: of the cluster's head; by default a cluster on this machine, or else this machine alone.
        cpus: cores, and threads, of a run.
        gpus: of a run; 0.5: two runs share one. By default 1 if the cluster has any.

    Raises:
        UsageError: Ray is not installed, nothing listens at the address, or a run needs more than any machine has.
    """

    def __init__(self, address: str | None = None, cpus: int = 1, gpus: float | None = None):
        if not available():
            raise UsageError(
                "Ray is not installed", "pip install -r requirements-cluster.txt, or run without --address"
            )
        host, _, port = (address or "").rpartition(":")
        if host and "://" not in host:  # Ray itself would try for minutes
            try:
                socket.create_connection((host, int(port)), timeout=10).close()
            except (OSError, ValueError) as error:
                raise UsageError(f"no Ray cluster at {address} ({error})", START_HINT) from error
        self.address, self.cpus, self.gpus = address, cpus, gpus

    def __enter__(self) -> "Cluster":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics are sent
        import ray
        from ray.job_config import JobConfig

        self.ray = ray
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                self.address,
                log_to_driver=False,
                logging_level="ERROR",  # type: ignore[arg-type]  # logging takes names as well as numbers
                include_dashboard=False,
                job_config=JobConfig(code_search_path=[str(ROOT)]),  # where workers import this project from
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"no Ray cluster at {self.address} ({reason})", START_HINT) from error
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)  # which Ray replaces
        if self.gpus is None:
            self.gpus = float(ray.cluster_resources().get("GPU", 0) >= 1)
        if self.slots() == 1:
            ray.shutdown()
            raise UsageError(f"no machine of this cluster has {self.cpus} cores and {self.gpus:g} GPUs for a run")
        self.task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(execute_in_task)
        return self

    def __exit__(self, *exception) -> None:
        self.ray.shutdown()

    def slots(self) -> int:
        """Slots of all live machines, plus one queued run so that no machine waits for the next one."""
        slots = 0
        for node in self.ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            by_gpu = has.get("GPU", 0) / self.gpus if self.gpus else float("inf")
            slots += int(min(has.get("CPU", 0) / self.cpus, by_gpu))
        return slots + 1

    def submit(self, run: Run) -> "Future[str | None]":
        return self.task.remote(os.getcwd(), self.cpus, run.arguments).future()


def execute_in_task(folder: str, threads: int, arguments: tuple[str, ...]) -> str | None:
    """`execute_run` in a worker of Ray."""
    os.chdir(folder)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray's handler raises an exception, as if the run had failed
    torch.set_num_threads(threads)
    keep_backbones(1)  # Ray gives further runs to this process
    return execute_run(arguments)
