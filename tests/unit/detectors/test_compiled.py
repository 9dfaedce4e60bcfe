"""A compiled detector finds what the plain one finds, with few graphs for all numbers of frames and phrases."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests import tinyconf
from tests.unit.detectors.reference import Reference, frames


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiled_detector_finds_the_same() -> None:
    torch.set_num_threads(1)
    reference, other = (Reference(tinyconf.litetext_config(), 21) for _ in range(2))
    values = {"score_threshold": 0.3, "batch_frames": 4}
    plain, made = reference.detector(**values), other.detector(**values)
    counter = CompileCounterWithBackend("eager")
    made._network.compile(4, 32, counter)
    counts, found = [], 0
    for phrases in (["person"], ["person", "red cup"]):
        prompts = reference.prompts(phrases)
        for seed, count in ((1, 4), (2, 3), (3, 1)):
            some = frames(seed, count, stream_id=f"{phrases} {seed}")
            for a, b in zip(plain.detect(some, prompts), made.detect(some, prompts), strict=True):
                assert a.prompt_id.tolist() == b.prompt_id.tolist()
                np.testing.assert_allclose(a.score, b.score, atol=1e-4)
                np.testing.assert_allclose(a.mask_logits, b.mask_logits, atol=1e-3)
                found += len(a)
        counts.append(counter.frame_count)
    assert found > 4
    again = frames(9, 3, stream_id="again")
    made.detect(again, prompts)
    assert counter.frame_count == counts[1] <= 40, "sizes that were there before compile nothing"


def test_masks_of_padded_batches_are_those_of_each_pair() -> None:
    """As on CUDA, where the pixel decoder is recorded for a few sizes; here it runs as it is."""
    torch.set_num_threads(1)
    reference, other = (Reference(tinyconf.litetext_config(), 21) for _ in range(2))
    values = {"score_threshold": 0.3, "batch_frames": 4}
    plain, made = reference.detector(**values), other.detector(**values)
    network, sizes = made._network, set()

    def run(states: torch.Tensor, *pairs: torch.Tensor) -> tuple[torch.Tensor]:
        sizes.add((len(states), len(pairs[0])))
        return network._pixels_of(states, *pairs)

    network._recorded_pixels, network.row_by_row = run, False
    found = 0
    for phrases in (["person"], ["person", "red cup", "dog"]):
        prompts = reference.prompts(phrases)
        for seed, count in ((1, 4), (2, 3), (3, 1)):
            some = frames(seed, count, stream_id=f"{phrases} {seed}")
            for a, b in zip(plain.detect(some, prompts), made.detect(some, prompts), strict=True):
                np.testing.assert_allclose(a.mask_logits, b.mask_logits, atol=1e-3)
                found += len(a)
    assert found > 8
    assert {n for size in sizes for n in size} <= {1, 2, 4, 8}
