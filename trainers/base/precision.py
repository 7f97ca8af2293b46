"""The precision that a run computes in."""

import re
from pathlib import Path

import torch

UNITS = {"fp16": "a GPU", "bf16": "a CPU or GPU with bf16 units"}


def usable(precision: str, device: torch.device) -> str:
    """The precision of PREC on a device; fp32 where the device does not multiply faster in fp16 or bf16."""
    if precision not in UNITS:
        return precision
    if device.type == "cpu":
        has_units = precision == "bf16" and cpu_has_bf16()
    else:
        has_units = precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return precision if has_units else "fp32"


def print_precision(precision: str, device: torch.device) -> None:
    """Print what a PREC of half precision means on a device."""
    if precision in UNITS and usable(precision, device) == precision:
        print(f"PREC {precision}: training and evaluation compute in {precision}")
    elif precision in UNITS:
        print(f"PREC {precision} needs {UNITS[precision]}: computing in fp32")


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for products of bf16 (AVX512-BF16, AMX or Arm's), as Linux lists them."""
    info = Path("/proc/cpuinfo")
    return info.is_file() and bool(re.search(r"\b(avx512_|amx_)?bf16\b", info.read_text()))
