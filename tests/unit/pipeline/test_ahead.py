"""Work ahead: in order, spread over turns, only where somebody waits, and none of it lost or done twice."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
import pytest
import torch

from pipeline import flow
from pipeline.ahead import Ahead, result_of
from pipeline.device_memory import download
from pipeline.telemetry import StageTimes
from pipeline.types import Detections, Frame, Prompts
from tests import tinyconf
from tests.unit.detectors.reference import Reference, frames


def work(steps: int, log: list[int], results: list[str] | None = None) -> Generator[None, None, None]:
    for number in range(steps):
        log.append(number)
        yield
    if results is not None:
        results.append("done")


def test_steps_are_launched_where_somebody_waits_and_no_more_than_a_turns_share() -> None:
    ahead, log, results = Ahead(), list[int](), list[str]()
    ahead.begin(work(8, log, results), num_steps=8, num_turns=5)
    ahead.step()
    assert log == [], "before the first turn nothing is due"
    counts = []
    for _ in range(5):
        ahead.turn()
        for _ in range(4):
            ahead.step()
        counts.append(len(log))
    assert counts == [2, 4, 5, 7, 8] and log == list(range(8)) and results == []
    ahead.finish()
    assert results == ["done"]
    ahead.finish()
    assert results == ["done"] and len(log) == 8


def test_what_a_turn_did_not_wait_for_is_launched_as_the_next_begins() -> None:
    ahead, log = Ahead(), list[int]()
    ahead.begin(work(4, log), num_steps=4, num_turns=2)
    for expected in ([], [0, 1], [0, 1, 2, 3]):
        ahead.turn()
        assert log == expected


def test_other_work_comes_after_what_is_left() -> None:
    ahead, log, results = Ahead(), list[int](), list[str]()
    ahead.begin(work(3, log, results), num_steps=3, num_turns=1)
    ahead.begin(work(2, log, results), num_steps=2, num_turns=1)
    assert (log, results) == ([0, 1, 2], ["done"])


def test_work_that_fails_is_dropped_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> Generator[None, None, None]:
        yield
        raise RuntimeError("CUDA out of memory")

    ahead = Ahead()
    with caplog.at_level("WARNING", "masklet"):
        for _ in range(2):
            ahead.begin(failing(), num_steps=2, num_turns=1)
            ahead.finish()
            ahead.turn()
            ahead.step()
    assert caplog.text.count("CUDA out of memory") == 1
    with pytest.raises(RuntimeError, match="out of memory"):
        result_of(failing())


def test_steps_run_as_a_detector_does_whoever_waits() -> None:
    modes = []

    def noting() -> Generator[None, None, None]:
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        yield

    ahead = Ahead()
    with torch.inference_mode():
        ahead.begin(noting(), num_steps=1, num_turns=1)
        ahead.finish()
        assert torch.is_inference_mode_enabled()
    assert modes == [(False, False)]


def test_a_download_offers_its_wait() -> None:
    offered: list[bool] = []
    assert download(torch.arange(3), lambda: offered.append(True)).tolist() == [0, 1, 2]
    assert offered == [True]


def test_items_come_with_the_next_and_an_error_comes_in_its_place() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("broken")

    pairs = flow.with_next(failing())
    assert [next(pairs), next(pairs)] == [(1, 2), (2, None)]
    with pytest.raises(ValueError, match="broken"):
        next(pairs)
    assert list(flow.with_next([])) == []


class Recording:
    """A detector that can begin with what is next."""

    looks_ahead = True

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []

    def prefetch(self, some: list[Frame]) -> None:
        self.calls.append(("prefetch", [f.index for f in some]))

    def detect(self, some: list[Frame], prompts: Prompts) -> list[Detections]:
        self.calls.append(("detect", [f.index for f in some]))
        return [Detections.empty() for _ in some]


def test_the_next_batch_is_begun_before_this_one_is_looked_at() -> None:
    detector, prompts = Recording(), Prompts((), np.zeros((0, 1, 1), np.float32), np.zeros((0, 1), bool))
    list(flow.detect(frames(1, 5), detector, prompts, 2, StageTimes()))  # type: ignore[arg-type]
    assert detector.calls == [
        ("prefetch", [2, 3]),
        ("detect", [0, 1]),
        ("prefetch", [4]),
        ("detect", [2, 3]),
        ("detect", [4]),
    ]


def test_no_more_frames_at_once_than_there_was_memory_for() -> None:
    reference = Reference(tinyconf.litetext_config(), 4)
    detector, some = reference.detector(batch_frames=4), frames(3, 4)
    encoded: list[int] = []
    embeddings = detector._network.backbone.embeddings
    embeddings.register_forward_pre_hook(lambda _module, given: encoded.append(len(given[0])))
    detector._max_pairs = 2
    detector.detect(frames(5, 4, stream_id="before"), reference.prompts(["person"]))
    assert encoded == [2, 2]
    detector.prefetch(some)
    detector.catch_up()
    assert encoded == [2, 2, 2, 2]
    detector.detect(some, reference.prompts(["person"]))
    assert encoded == [2, 2, 2, 2]
