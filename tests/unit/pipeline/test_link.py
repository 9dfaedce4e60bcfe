"""Hotstart's release buffer and the numbering of masklets."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.link import MaskletNumbering, ReleaseBuffer
from pipeline.types import RLE, FrameTracks, Prompts


def tracks(index: int, ids: list[int], withdrawn: tuple[int, ...] = ()) -> FrameTracks:
    n = len(ids)
    return FrameTracks(
        "v",
        0,
        index,
        index / 10,
        np.array(ids, np.int64),
        np.zeros(n, np.int16),
        np.linspace(0.5, 0.9, n, dtype=np.float32),
        np.zeros((n, 4), np.float32),
        tuple(RLE((2, 2), b"04") for _ in ids),
        np.array(withdrawn, np.int64),
    )


@pytest.mark.parametrize("delay", [0, 1, 2, 5])
def test_every_frame_comes_out_once_in_order_and_late_by_the_delay(delay: int) -> None:
    buffer = ReleaseBuffer(delay)
    released: list[int] = []
    for i in range(12):
        released += [t.index for t in buffer.push(tracks(i, [1]))]
        assert len(released) == max(i + 1 - max(delay - 1, 0), 0)
    released += [t.index for t in buffer.flush()]
    assert released == list(range(12))


def test_a_withdrawn_id_was_never_there() -> None:
    buffer = ReleaseBuffer(4)
    out = [t for i in range(3) for t in buffer.push(tracks(i, [1, 2]))]
    out += buffer.push(tracks(3, [1, 3], withdrawn=(2,)))
    out += buffer.flush()
    assert [t.track_id.tolist() for t in out] == [[1], [1], [1], [1, 3]]
    assert buffer.num_withdrawn == 1


def test_ids_count_from_one_in_order_of_first_appearance() -> None:
    prompts = Prompts(("cat",), np.zeros((1, 1, 4), np.float32), np.ones((1, 1), bool))
    numbering = MaskletNumbering("v", prompts, (2, 2))
    frames = [numbering.number(tracks(i, ids)) for i, ids in enumerate([[], [7], [3, 7], [7, 9], [3]])]
    assert [f.masklet_id.tolist() for f in frames] == [[], [1], [1, 2], [1, 3], [2]]
    assert frames[2].score.tolist() == pytest.approx([0.9, 0.5])  # columns follow their ids
    assert numbering.num_masklets == 3
