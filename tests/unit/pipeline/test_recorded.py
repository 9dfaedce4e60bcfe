"""Bookkeeping of recorded CUDA graphs, without CUDA: a stand-in records what a function does and repeats it in place.

That the real ones compute the same is in test_on_cuda.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.compiled import CudaGraphs


class PretendedStream:
    def wait_stream(self, other: object) -> None:
        pass


class PretendedGraph:
    """Replaying writes the results of the recorded inputs, wherever they are now, over the recorded outputs."""

    repeat: Any = None

    def replay(self) -> None:
        self.repeat()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes that the function below was run for by the host."""
    seen: list[tuple[int, ...]] = []

    @contextmanager
    def record(graph: PretendedGraph, **_: object) -> Iterator[None]:
        before = len(double.runs)  # type: ignore[attr-defined]
        yield
        inputs, outputs = double.runs[before]  # type: ignore[attr-defined]

        def repeat() -> None:
            outputs[0].copy_(inputs[0] * 2 + inputs[1])

        graph.repeat = repeat

    @contextmanager
    def anywhere(_: object) -> Iterator[None]:
        yield

    for name, stand_in in (
        ("Stream", PretendedStream),
        ("current_stream", PretendedStream),
        ("stream", anywhere),
        ("CUDAGraph", PretendedGraph),
        ("graph", record),
        ("graph_pool_handle", lambda: (0, 1)),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(CudaGraphs, "_workshop", None)
    monkeypatch.setattr(double, "runs", [], raising=False)
    monkeypatch.setattr(double, "seen", seen, raising=False)
    return seen


def double(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    out = (a * 2 + b,)
    double.runs.append(((a, b), out))  # type: ignore[attr-defined]
    double.seen.append(tuple(a.shape))  # type: ignore[attr-defined]
    return out


def test_a_recording_serves_all_calls_of_its_shapes(calls: list[tuple[int, ...]]) -> None:
    recorded = CudaGraphs(double)
    results = []
    for seed in range(3):
        a, b = (torch.randn(4, 3, generator=torch.Generator().manual_seed(seed + k)) for k in (0, 10))
        given = a.clone(), b.clone()
        (out,) = recorded(*given)
        results.append((out, a * 2 + b))
        assert torch.equal(given[0], a), "what is given is only read"
    for out, wanted in results:
        assert torch.equal(out, wanted), "a later call overwrote the result of an earlier one"
    assert calls == [(4, 3)] * 3, "two to warm up and one to record"
    recorded(torch.zeros(2, 3), torch.zeros(2, 3))
    assert calls[3:] == [(2, 3)] * 3
    recorded(torch.zeros(4, 3), torch.zeros(4, 3))
    assert len(calls) == 6


def test_what_is_recorded_in_inference_mode_serves_outside(calls: list[tuple[int, ...]]) -> None:
    recorded = CudaGraphs(double)
    with torch.inference_mode():
        recorded(torch.ones(1, 2).expand(3, 2), torch.zeros(3, 2))
    (out,) = recorded(torch.full((3, 2), 2.0), torch.ones(3, 2))
    assert torch.equal(out, torch.full((3, 2), 5.0))


def test_shapes_that_are_rare_run_as_they_are(calls: list[tuple[int, ...]]) -> None:
    recorded = CudaGraphs(double, after=2)
    for turn in range(2):
        for rows in (1, 2):
            (out,) = recorded(torch.full((rows, 3), float(turn)), torch.ones(rows, 3))
            assert torch.equal(out, torch.full((rows, 3), 2.0 * turn + 1))
    assert calls == [(1, 3), (2, 3)] * 2
    recorded(torch.zeros(1, 3), torch.zeros(1, 3))
    assert calls[4:] == [(1, 3)] * 3, "its third time"
    (out,) = recorded(torch.full((1, 3), 4.0), torch.zeros(1, 3))
    assert len(calls) == 7
    assert torch.equal(out, torch.full((1, 3), 8.0))


def test_what_is_large_runs_as_it_is(calls: list[tuple[int, ...]]) -> None:
    recorded = CudaGraphs(double, most_rows=2)
    for _ in range(3):
        (out,) = recorded(torch.ones(3, 3), torch.ones(3, 3))
        assert torch.equal(out, torch.full((3, 3), 3.0))
    assert calls == [(3, 3)] * 3
    recorded(torch.ones(2, 3), torch.ones(2, 3))
    recorded(torch.ones(2, 3), torch.ones(2, 3))
    assert calls[3:] == [(2, 3)] * 3
