"""Three identical cups shuffled by hand, on real footage (``MASKLET_TEST_DATA``): every number stays on its cup.

The truth was read off the frames; the ball agrees with it, which goes under the first cup and comes out from under it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline import track

CLIP = Path(os.environ.get("MASKLET_TEST_DATA", "/nonexistent")) / "clips" / "02_cups.mp4"
LEFT_TO_RIGHT = {
    40: [1, 2, 3], 61: [2, 1, 3], 84: [1, 2, 3], 110: [3, 2, 1], 136: [3, 2, 1],
    160: [3, 1, 2], 196: [1, 3, 2], 215: [1, 2, 3], 240: [2, 1, 3], 262: [2, 3, 1],
}  # fmt: skip
"""Cups by frame, where all three stand apart; numbered as they stand on the first of them."""


@pytest.mark.skipif(not CLIP.exists(), reason="MASKLET_TEST_DATA/clips/02_cups.mp4 is not there")
def test_every_number_stays_on_its_cup() -> None:
    found, everybody = {}, set()
    for result in track(CLIP, text="red thing", device="cpu", set=["device.threads=1"]):
        everybody |= set(result.masklet_id.tolist())
        if result.index in LEFT_TO_RIGHT:
            found[result.index] = result.masklet_id[np.argsort(result.xyxy[:, 0])].tolist()

    number = dict(zip(found[40], (1, 2, 3), strict=True))
    assert {frame: [number[i] for i in ids] for frame, ids in found.items()} == LEFT_TO_RIGHT
    assert len(everybody) == 3
