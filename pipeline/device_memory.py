"""To a device and back without waiting for it, and what to do when it runs out of memory: less at a time. Torch."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import DeviceError

T = TypeVar("T")

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In messages of the CUDA, MPS and CPU allocators (the last raises a plain ``RuntimeError``)."""
_ADVICE = "free the device, set device.dtype=bfloat16, lower tracker.max_objects or take a smaller --model"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of torch had no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def out_of_memory(error: BaseException, when: str = "") -> DeviceError:
    """What to say of an allocation that failed, in one line with advice."""
    lines = str(error).splitlines() or [type(error).__name__]
    return DeviceError(f"out of memory{when}", lines[0], _ADVICE)


def with_smaller_batches(run: Callable[[int], T], batch: int, what: str) -> tuple[T, int]:
    """``run(batch)``, and again with half as many whenever the device has no memory for it.

    Args:
        run: does all of the work in batches of the given size; it must be safe to start over.
        what: what a batch consists of, for the error.

    Returns:
        The result and the batch size that worked.

    Raises:
        DeviceError: even one at a time does not fit.
    """
    while True:
        try:
            return run(batch), batch
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if batch <= 1:
                raise out_of_memory(error, f" with one {what} at a time") from error
        # Outside of the handler: the error's traceback holds the tensors of the attempt.
        batch //= 2
        release_memory()


def upload(values: NDArray[Any], device: torch.device) -> Tensor:
    """These values on the device; CUDA copies from pinned memory while the host goes on, instead of waiting for it.

    On a CPU the result may share the memory of ``values``.
    """
    if device.type != "cuda":
        return (torch.from_numpy(values) if values.flags.writeable else torch.tensor(values)).to(device)
    dtype = torch.from_numpy(np.empty(0, values.dtype)).dtype
    pinned = torch.empty(values.shape, dtype=dtype, pin_memory=True)
    np.copyto(pinned.numpy(), values)
    return pinned.to(device, non_blocking=True)  # the pinned memory is kept until the copy is done


def download(values: Tensor, meanwhile: Callable[[], None] | None = None) -> NDArray[Any]:
    """These values on the host, by way of pinned memory from CUDA: large masks come several times faster.

    Args:
        meanwhile: called once they are asked for; what it launches is not waited for (:class:`pipeline.ahead.Ahead`).
    """
    if values.device.type != "cuda":
        found: NDArray[Any] = values.cpu().numpy()
        if meanwhile is not None:
            meanwhile()
        return found
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    pinned.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(values.device))
    if meanwhile is not None:
        meanwhile()
    arrived.synchronize()
    return pinned.numpy()


def release_memory() -> None:
    """Give cached blocks back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
