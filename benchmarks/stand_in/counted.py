"""Counts for a stand-in GPU: kernels launched, and waits of the CPU."""

import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
SIZED = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default}
SIZED |= {aten.repeat_interleave.Tensor}  # the size of the result depends on values
FREE = {aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default}
FREE |= {aten._reshape_alias.default, aten.detach.default, aten.alias.default, aten._unsafe_view.default}
FREE |= {aten.lift_fresh.default}  # memory without values, and views that the schema does not say are some


class Counted:
    """Counters of launches by operation, and of waits by the innermost line of the project.

    Args:
        project: its folder.

    Attributes:
        capturing: the graph that is being captured.
    """

    def __init__(self, project: str):
        self.project = f"{project}/"
        self.capturing: Any = None
        self.reset()

    def reset(self) -> None:
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def operation(self, operation, arguments: tuple, options: dict, here: list[Tensor], there: list[Tensor]) -> None:
        """Count an operation. `here` are its tensors on the device, `there` those on the CPU."""
        name, target = str(operation).removeprefix("aten."), options.get("device")
        copies = operation in (aten._to_copy.default, aten.copy_.default)
        to_cpu = any(arguments[0] is each for each in there) if target is None else torch.device(target).type == "cpu"
        if operation in READS:
            self.wait(name)
        elif copies and here and to_cpu:
            self.wait("copy to the CPU")
        elif copies and there:
            asked = options.get("non_blocking") or arguments[2:3] == (True,)
            if self.capturing and not (asked and any(getattr(tensor, "pinned", False) for tensor in there)):
                raise RuntimeError("Cannot copy from the CPU during a capture unless its memory is pinned")
        else:
            if operation in SIZED:
                self.wait(name)
            if operation not in FREE and not is_view(operation) and (not here or here[0].numel()):
                self.launches[name] += 1

    def wait(self, why: str) -> None:
        if self.capturing:
            raise RuntimeError(f"operation not permitted when stream is capturing: {why}")
        self.waits[f"{self.place()} {why}"] += 1

    def place(self) -> str:
        """The innermost line of the project that is being executed, outside the stand-in."""
        frame = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(self.project) and "/stand_in/" not in file and "/.venv/" not in file:
                return f"{file.removeprefix(self.project)}:{frame.f_lineno}"
            frame = frame.f_back
        return "autograd"


def is_view(operation) -> bool:
    """Whether the results of an operation share the memory of an argument that it leaves as it is."""
    results = operation._schema.returns
    return bool(results) and all(result.alias_info is not None and not result.alias_info.is_write for result in results)
