"""Time, launches and waits of a step. It imports nothing else of this project, for the sake of official code."""

import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")  # calls to CUDA
WAITS = "called a synchronizing CUDA operation"  # torch's warning


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, until the device has finished."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measured(step: Callable[[], object], device: torch.device, warm_up: int, times: int) -> dict:
    """Milliseconds of a step (median), and on CUDA its launches and how often the CPU waits for the device.

    Args:
        warm_up: steps before those that are timed.
        times: how many are timed.
    """
    for _ in range(warm_up):
        step()
    found: dict = {"ms": 1e3 * statistics.median(timed(step, device) for _ in range(times))}
    if device.type == "cuda":
        found |= counted(step)
    return found


def counted(step: Callable[[], object]) -> dict:
    """Launches of a step on a GPU, or operations on the stand-in for one, and waits of the CPU."""
    if stand_in := sys.modules.get("benchmarks.stand_in"):
        stand_in.COUNTED.reset()
        step()
        return {"launches": stand_in.COUNTED.launches.total(), "waits": stand_in.COUNTED.waits.total()}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = sum(WAITS in str(warning.message) for warning in found)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    launches = sum(event.count for event in seen.key_averages() if event.key.startswith(LAUNCHES))
    return {"launches": launches or "not seen by torch's profiler", "waits": waits}
