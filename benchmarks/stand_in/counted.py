"""Counts for a stand-in GPU: kernels launched, waits of the CPU, copies to the device."""

import sys
from collections import Counter

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
    """Counters of launches by operation, and of waits and copies by the innermost line of the project.

    Args:
        project: its folder.
    """

    def __init__(self, project: str):
        self.project, self.capturing = f"{project}/", False
        self.reset()

    def reset(self) -> None:
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()

    def operation(self, operation, arguments: tuple, options: dict, here: list[Tensor], there: list[Tensor]) -> None:
        """Count an operation. `here` are its tensors on the device, `there` those on the CPU."""
        name = str(operation).removeprefix("aten.")
        target = options.get("device")
        if operation in READS:
            return self.wait(name)
        if operation in SIZED:
            self.wait(name)
        copies = operation in (aten._to_copy.default, aten.copy_.default)
        to_cpu = (
            torch.device(target).type == "cpu" if target is not None else any(arguments[0] is each for each in there)
        )
        if copies and here and to_cpu:
            return self.wait("copy to the CPU")
        if copies and there:
            blocking = not (options.get("non_blocking") or arguments[2:3] == (True,)) or not any(
                getattr(tensor, "pinned", False) for tensor in there
            )
            if blocking and self.capturing:
                raise RuntimeError("Cannot copy from the CPU during a capture unless its memory is pinned")
            self.copies[f"{self.place()}{' (the CPU waits)' if blocking else ''}"] += 1
        elif operation not in FREE and not is_view(operation) and (not here or here[0].numel()):
            self.launches[name] += 1
        return None

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
