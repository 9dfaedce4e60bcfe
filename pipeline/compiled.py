"""``torch.compile`` with shapes that recur: batches are padded to powers of two, so that few graphs serve all sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

_GRAPHS = 64
"""Of one function: a size that comes after so many others is run without compiling. torch's own limit, 8, is fewer than
the powers of two."""

Backend = str | Callable[..., Any]
COMPILER: Backend = "inductor"
"""What ``device.compile`` compiles with."""


def compiled(function: F, backend: Backend = COMPILER, *, dynamic: bool | None = False) -> F:
    """``function``, compiled once per shape; with ``dynamic=None`` also once for a dimension that changes."""
    dynamo: Any = torch._dynamo  # type: ignore[attr-defined]
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _GRAPHS)
    return cast(F, torch.compile(function, backend=backend, dynamic=dynamic))


def bucket(count: int, most: int) -> int:
    """The next power of two, but not above ``most``, which a batch of ``count`` must not be either."""
    return min(1 << (count - 1).bit_length(), most)


def padded(batch: Tensor, size: int) -> Tensor:
    """``(size, ...)``: the last row repeated."""
    missing = size - len(batch)
    return batch if missing <= 0 else torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])])
