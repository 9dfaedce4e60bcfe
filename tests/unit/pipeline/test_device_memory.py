"""Less at a time when the device has no memory: the rule, and the detector under it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from configs.schema import DetectorConfig, DeviceConfig, ModelConfig
from pipeline.checkpoints import open_checkpoint
from pipeline.detectors.sam3_litetext import Sam3LiteTextDetector
from pipeline.device_memory import is_out_of_memory, with_smaller_batches
from pipeline.errors import DeviceError
from pipeline.types import Frame, Prompts
from workers.devices import prepare_device

CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
)


def test_what_is_lack_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(RuntimeError(CPU_MESSAGE))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_card_that_is_asked_for_is_the_one_that_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams and events are the current card's."""
    chosen: list[torch.device] = []
    for name, value in (("is_available", lambda: True), ("device_count", lambda: 2), ("set_device", chosen.append)):
        monkeypatch.setattr(torch.cuda, name, value)
    assert prepare_device(DeviceConfig(name="cuda:1")) == (torch.device("cuda:1"), torch.bfloat16)
    prepare_device(DeviceConfig(name="cuda"))
    prepare_device(DeviceConfig(name="cpu", threads=1))
    assert chosen == [torch.device("cuda:1")]


def test_the_batch_is_halved_until_it_fits() -> None:
    tried: list[int] = []

    def run(size: int) -> str:
        tried.append(size)
        if size > 3:
            raise RuntimeError(CPU_MESSAGE)
        return "done"

    assert with_smaller_batches(run, 13, "object") == ("done", 3)
    assert tried == [13, 6, 3]


def test_one_that_does_not_fit_fails_with_advice() -> None:
    def run(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceError, match=r"one object at a time \(CUDA out of memory\): free the device"):
        with_smaller_batches(run, 4, "object")


@pytest.fixture(scope="module")
def detector() -> Sam3LiteTextDetector:
    torch.set_num_threads(1)
    return Sam3LiteTextDetector(open_checkpoint(ModelConfig(name="tiny")), DetectorConfig(batch_frames=4))


def _job() -> tuple[list[Frame], Prompts]:
    rng = np.random.default_rng(0)
    frames = [Frame("m", t, t / 24, rng.integers(0, 255, (64, 64, 3)).astype(np.uint8), (64, 64)) for t in range(4)]
    embeddings = rng.normal(size=(2, 8, 48)).astype(np.float32)
    return frames, Prompts(("a", "b"), embeddings, np.ones((2, 8), bool))


def test_the_detector_takes_fewer_frames_then_fewer_phrases(
    detector: Sam3LiteTextDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device with room for one pair of frame and phrase; it is not asked for more again."""
    frames, prompts = _job()
    asked: list[int] = []
    decode = detector._network.decode

    def tight(coarse: Any, text: torch.Tensor, mask: torch.Tensor) -> Any:
        asked.append(len(text))
        if len(text) > 1:
            raise RuntimeError(CPU_MESSAGE)
        return decode(coarse, text, mask)

    expected = detector.detect(frames, prompts)
    monkeypatch.setattr(detector._network, "decode", tight)
    found = detector.detect(frames, prompts)
    assert asked[:4] == [8, 4, 2, 1]
    assert asked[3:] == [1] * 8
    for a, b in zip(expected, found, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-4)
    asked.clear()
    detector.detect(frames, prompts)
    assert asked == [1] * 8
