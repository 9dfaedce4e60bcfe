"""Which device and precision to run on, and how many CPU threads to use."""

from __future__ import annotations

import os

import torch

from configs.schema import DeviceConfig
from pipeline.errors import DeviceError


def prepare_device(config: DeviceConfig) -> tuple[torch.device, torch.dtype]:
    """Resolve ``auto``, set torch's threads and its current CUDA device.

    Raises:
        DeviceError: the device asked for is not there.
    """
    device = _device(config.name)
    if device.type == "cpu":
        torch.set_num_threads(config.threads or max(_cores() - 1, 1))
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams, events and recordings are the current device's
    if config.dtype == "auto":
        return device, torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, config.dtype)
    return device, dtype


def _cores() -> int:
    """Cores this process may use (a container's share, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(name.partition(":")[2] or 0)
        if index >= count:
            found = f"{count} CUDA device{'s' if count != 1 else ''} found"
            raise DeviceError(
                f"no such device: {name}", found, "use --device cpu, or check the driver (masklet doctor)"
            )
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("no such device: mps", "", "use --device cpu")
    return torch.device(name)
