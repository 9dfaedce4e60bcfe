"""``torch.compile`` with shapes that recur: batches are padded to powers of two, so that few graphs serve all sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

_GRAPHS = 64
"""Of one function: a size that comes after so many others is run as it is. torch's own limit, 8, is fewer than the
powers of two."""

Backend = str | Callable[..., Any]
COMPILER: Backend = "inductor"
"""What ``device.compile`` compiles with."""


def compiled(function: F, backend: Backend = COMPILER, *, dynamic: bool | None = False) -> F:
    """``function``, compiled once per shape; with ``dynamic=None`` also once for a dimension that changes."""
    dynamo: Any = torch._dynamo  # type: ignore[attr-defined]
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _GRAPHS)
    return cast(F, torch.compile(function, backend=backend, dynamic=dynamic))


class CudaGraphs:
    """A function of CUDA tensors without host syncs, recorded once per shapes and from then on launched as a whole.

    For what is made of hundreds of small kernels: there the host's launches take longer than the work.

    Args:
        function: whatever it reads besides its arguments must stay where it is in memory.
        after: so many calls of the same shapes run as they are before; recording takes as long as a dozen of them.
        most_rows: of the last argument; what is larger runs as it is: its launches are the smaller part.
    """

    _workshop: ClassVar[_Workshop | None] = None

    def __init__(
        self, function: Callable[..., tuple[Tensor, ...]], *, after: int = 0, most_rows: int | None = None
    ) -> None:
        self._function, self._after, self._most_rows = function, after, most_rows
        self._calls: Counter[tuple[object, ...]] = Counter()
        self._recorded: dict[tuple[object, ...], tuple[list[Tensor], Any, tuple[Tensor, ...]]] = {}

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """As the function; what is returned is the caller's own."""
        if self._most_rows is not None and len(given[-1]) > self._most_rows:
            return self._function(*given)
        key = tuple((part.shape, part.dtype) for part in given)
        if key not in self._recorded:
            self._calls[key] += 1
            if self._calls[key] <= self._after or len(self._recorded) >= _GRAPHS:
                return self._function(*given)
            self._recorded[key] = self._record(given)
        inputs, graph, outputs = self._recorded[key]
        for mine, part in zip(inputs, given, strict=True):
            mine.copy_(part)
        graph.replay()
        return tuple(part.clone() for part in outputs)

    def _record(self, given: tuple[Tensor, ...]) -> tuple[list[Tensor], Any, tuple[Tensor, ...]]:
        shop = CudaGraphs._workshop = CudaGraphs._workshop or _Workshop()
        with torch.inference_mode(False), torch.no_grad():
            inputs = [part.clone(memory_format=torch.contiguous_format) for part in given]
            shop.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(shop.stream):
                for _ in range(2):  # what libraries set up at first use must not be recorded
                    self._function(*inputs)
            torch.cuda.current_stream().wait_stream(shop.stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=shop.pool, stream=shop.stream, capture_error_mode="thread_local"):
                outputs = self._function(*inputs)
            return inputs, graph, outputs


class _Workshop:
    """Where all recordings are made, and what they share: no two run at once, and results are copied out of it."""

    def __init__(self) -> None:
        self.pool: Any = torch.cuda.graph_pool_handle()
        """Memory for what lies between."""
        self.stream = torch.cuda.Stream()
        """One that nothing else runs on: recordings keep using its cuBLAS workspace."""


def bucket(count: int, most: int) -> int:
    """The next power of two, but not above ``most``, which a batch of ``count`` must not be either."""
    return min(1 << (count - 1).bit_length(), most)


def padded(batch: Tensor, size: int) -> Tensor:
    """``(size, ...)``: the last row repeated."""
    missing = size - len(batch)
    return batch if missing <= 0 else torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])])
