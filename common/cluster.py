"""Ray, on this machine or on a cluster whose machines share the folders of a command."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from .errors import UsageError
from .version import INSTALLED, ROOT

START_HINT = "start one with `ray start --head`"


def available() -> bool:
    """Whether Ray is installed."""
    return find_spec("ray") is not None


def check_cluster(address: str | None) -> None:
    """Raise UsageError if Ray is not installed, or nothing listens at the address."""
    if not available():
        remedy = "pip install -r requirements-cluster.txt, or run without --address and --engine"
        raise UsageError("Ray is not installed", remedy)
    host, _, port = (address or "").rpartition(":")
    if host and "://" not in host:  # Ray itself would try for minutes
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise UsageError(f"no Ray cluster at {address} ({error})", START_HINT) from error


def connect(address: str | None) -> Any:
    """The module `ray`, connected to the cluster at an address; by default to one on this machine,
    which is started if there is none. UsageError if that fails.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics are sent
    import ray
    from ray.job_config import JobConfig

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address,
            log_to_driver=False,
            # logging takes names as well as numbers
            logging_level="ERROR",  # type: ignore[arg-type]
            include_dashboard=False,
            # Where workers import this project from
            job_config=JobConfig(code_search_path=[str(ROOT.parent if INSTALLED else ROOT)]),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        fault = f"no Ray cluster at {address}" if address else "Ray does not start on this machine"
        raise UsageError(f"{fault} ({reason})", START_HINT) from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # which Ray replaces
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """`connect`, until the end of the block."""
    check_cluster(address)
    ray = connect(address)
    try:
        yield ray
    finally:
        ray.shutdown()


def gpus_each(ray: Any) -> float:
    """GPUs of a worker: 1 if the cluster has any."""
    return float(ray.cluster_resources().get("GPU", 0) >= 1)


def places(ray: Any, cpus: int, gpus: float) -> int:
    """How many workers all live machines have room for."""
    count = 0
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        by_gpu = has.get("GPU", 0) / gpus if gpus else float("inf")
        count += int(min(has.get("CPU", 0) / cpus, by_gpu))
    return count


def no_room(cpus: int, gpus: float) -> UsageError:
    return UsageError(f"no machine of this cluster has {cpus} cores and {gpus:g} GPUs for a run")
