"""Where bfloat16 products are fast."""

from pathlib import Path

import torch

FAST_BF16_CPU = frozenset({"avx512_bf16", "amx_bf16"})
"""Processor features with which bf16 products are faster than fp32; without them far slower."""

CPU_FEATURES = Path("/proc/cpuinfo")


def has_fast_bf16(device: str) -> bool:
    """Tell whether products in bf16 are faster than in fp32 on a device, as far as is known.

    Args:
        device: Such as cpu, cuda:1 or mps.
    """
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device)[0] >= 8
    if not device.startswith("cpu"):
        return False
    try:
        text = CPU_FEATURES.read_text()
    except OSError:  # not Linux
        return False
    return not FAST_BF16_CPU.isdisjoint(text.split())
