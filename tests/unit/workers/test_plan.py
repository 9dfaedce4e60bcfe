"""Which frames are asked for, and where a video is cut."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from configs.schema import ChunkConfig, SamplingConfig
from pipeline.decode import FrameTable
from pipeline.errors import ConfigError, NoVideoError
from pipeline.types import VideoInfo
from workers.plan import chunk_ranges, frame_range, step_cuts


def table(
    n: int = 300,
    fps: int = 30,
    keys: tuple[int, ...] = (0,),
    offset: int = 0,
    jitter: int = 0,
    sizes: np.ndarray | None = None,
) -> FrameTable:
    rng = np.random.default_rng(0)
    pts = offset + 1000 * np.arange(n) + rng.integers(0, jitter + 1, n)
    info = VideoInfo("v.mp4", 64, 48, Fraction(fps), n, n / fps, 0)
    return FrameTable(
        info,
        "v",
        "v.mp4",
        pts,
        Fraction(1, 1000 * fps),
        "mov",
        "h264",
        True,
        "",
        keyframes=pts[list(keys)],
        packet_bytes=np.zeros(0, np.int64) if sizes is None else sizes,
    )


@pytest.mark.parametrize(
    ("start", "stop", "want"),
    [
        (None, None, (0, 300)),
        ("30", "60", (30, 60)),
        ("1s", "2.5s", (30, 75)),
        ("1.0", None, (30, 300)),
        ("290", "9999", (290, 300)),
    ],
)
def test_start_and_stop(start: str | None, stop: str | None, want: tuple[int, int]) -> None:
    assert frame_range(SamplingConfig(start=start, stop=stop), table(offset=7777)) == want


@pytest.mark.parametrize(("start", "stop"), [("60", "30"), ("soon", None), ("-1", None)])
def test_nonsense_is_refused(start: str, stop: str | None) -> None:
    with pytest.raises(ConfigError):
        frame_range(SamplingConfig(start=start, stop=stop), table())


def test_a_video_that_ends_before_the_start_is_its_own_trouble() -> None:
    with pytest.raises(NoVideoError, match="300 frames"):
        frame_range(SamplingConfig(start="900"), table())


def test_no_chunking_is_one_range() -> None:
    assert chunk_ranges(ChunkConfig(), SamplingConfig(start="10"), table()) == [(10, 300)]


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("jitter", [0, 400])
def test_pieces_cover_the_video_and_overlap(stride: int, jitter: int) -> None:
    ranges = chunk_ranges(
        ChunkConfig(length="3s", overlap="1s"), SamplingConfig(stride=stride, start="5"), table(jitter=jitter)
    )
    assert ranges[0][0] == 5
    assert ranges[-1][1] == 300
    for (a, a_stop), (b, _) in itertools.pairwise(ranges):
        assert a < b < a_stop
        assert 29 <= a_stop - b <= 32
        assert (b - 5) % stride == 0


def test_cuts_move_to_a_keyframe_in_reach() -> None:
    plain = chunk_ranges(ChunkConfig(length="4s", overlap="2s"), SamplingConfig(), table())
    moved = chunk_ranges(ChunkConfig(length="4s", overlap="2s"), SamplingConfig(), table(keys=(0, 110, 200)))
    assert [r[0] for r in plain] == [0, 120]
    assert [r[0] for r in moved] == [0, 110]


def starts(sizes: np.ndarray, keys: tuple[int, ...], stride: int = 1) -> list[int]:
    chunk = ChunkConfig(length="4s", overlap="1s")
    return [r[0] for r in chunk_ranges(chunk, SamplingConfig(stride=stride), table(keys=keys, sizes=sizes))]


def test_cuts_move_to_where_little_moves() -> None:
    sizes = np.where(np.arange(300) % 3, 2000, 8000)  # the rhythm of B-frames
    sizes[[0, 100, 200]] = 90_000  # keyframes as encoders set them: large, and not a reason
    assert starts(sizes, (0, 100, 200)) == [0, 120, 240]
    calm = sizes.copy()
    calm[112:143] //= 10
    assert starts(calm, (0, 100, 200)) == [0, 112, 240]
    assert starts(calm, (0, 100, 200), stride=5) == [0, 110, 240]
    calm[210:241] //= 10  # out of reach of 240 s but for its end
    assert 225 <= starts(calm, (0, 100, 200))[2] < 240


def test_the_handover_moves_to_a_scene_cut() -> None:
    sizes = np.full(300, 3000)
    sizes[120:152] = 100  # calmer, but a cut is better still
    cut = (0, 100, 128, 228)  # 128 came early: after it the count starts again
    ranges = chunk_ranges(ChunkConfig(length="4s", overlap="1s"), SamplingConfig(), table(keys=cut, sizes=sizes))
    handover = (ranges[1][0] + ranges[0][1]) // 2
    assert starts(sizes, (0, 64, 128, 192, 256))[1] == 120
    assert abs(handover - 128) <= 1


def test_a_short_rest_joins_the_piece_before() -> None:
    ranges = chunk_ranges(ChunkConfig(length="4.9s", overlap="1s"), SamplingConfig(), table())
    assert ranges == [(0, 178), (147, 300)]
    assert chunk_ranges(ChunkConfig(length="60s"), SamplingConfig(), table()) == [(0, 300)]


def test_pieces_in_sequence_begin_between_two_batches() -> None:
    chunk = ChunkConfig(mode="sequential", length="2.1s")
    cuts = step_cuts(chunk, SamplingConfig(stride=3, start="5"), 4, table(jitter=300))
    assert len(cuts) == 4
    assert all((c - 5) % 12 == 0 for c in cuts)
    assert all(abs(c - 5 - 63 * (i + 1)) <= 13 for i, c in enumerate(cuts))
    assert step_cuts(ChunkConfig(length="2s", overlap="1s"), SamplingConfig(), 4, table()) == []
