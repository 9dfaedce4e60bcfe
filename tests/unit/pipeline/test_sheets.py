"""Contact sheet and timeline: what they show, and that any run can be shown."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline import masks as mask_ops
from pipeline.errors import SourceError, UsageError
from pipeline.render import contact_sheet, sheet, timeline
from pipeline.render import timeline as timeline_function
from pipeline.render.lives import Life, clock, lives_of, shades, span_s
from pipeline.render.page import PAPER, WIDTH_PX
from pipeline.render.palette import colour
from pipeline.render.sheet import moments_of, portrait
from pipeline.render.timeline import longest, stretches, tick_s
from tests.pictured import HOSTILE, Footage, pictured_run
from tests.runs import KINDS, make_run


def picture(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return image[..., ::-1]


def life(frames: list[int], score: float = 0.8) -> Life:
    frame = np.array(frames, np.int64)
    return Life(1, "cat", frame, frame / 10, np.full(len(frames), score, np.float32))


def test_contact_sheet_has_a_row_of_pictures_per_masklet(tmp_path: Path) -> None:
    image = picture(contact_sheet(pictured_run(tmp_path), tmp_path / "new" / "sheet.png"))
    assert image.shape == (sheet._HEAD_PX + 3 * sheet._ROW_PX + 16, WIDTH_PX, 3)
    for row in range(3):
        for column in range(sheet.COLUMNS):
            y, x = sheet._HEAD_PX + row * sheet._ROW_PX + 14, sheet._cell_x(column)
            cell = image[y : y + sheet._CELL[1], x : x + sheet._CELL[0]].astype(int)
            assert (np.abs(cell - colour(row + 1)).max(-1) < 40).sum() > 30, (row, column)  # its outline
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["sheet.png"]


def test_contact_sheet_names_those_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "MAX_ROWS", 2)
    image = picture(contact_sheet(pictured_run(tmp_path, footage=Footage(count=30)), tmp_path / "sheet.png"))
    assert image.shape[0] == sheet._HEAD_PX + 2 * sheet._ROW_PX + 16


def test_contact_sheet_needs_the_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        contact_sheet(make_run(tmp_path / "run"), tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_a_portrait_shows_the_object_bright_and_the_rest_dark() -> None:
    image = np.full((400, 600, 3), 200, np.uint8)
    mask = np.zeros((400, 600), bool)
    mask[100:160, 300:360] = True
    shown = portrait(image, mask_ops.encode(mask[None])[0], (176, 110), colour(1))
    assert shown.shape == (110, 176, 3)
    assert (shown[55, 88] == 200).all()
    assert shown[5, 5].max() < 120


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0, 0, 64, 48), (60, 0, 64, 48), (0, 47, 64, 48)])
def test_any_mask_has_a_portrait(box: tuple[int, int, int, int]) -> None:
    mask = np.zeros((48, 64), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    shown = portrait(np.zeros((48, 64, 3), np.uint8), mask_ops.encode(mask[None])[0], (176, 110), colour(1))
    assert (np.abs(shown.astype(int) - colour(1)).max(-1) < 60).any()


@pytest.mark.parametrize("kind", KINDS)
def test_every_run_has_a_timeline(tmp_path: Path, kind: str) -> None:
    run = make_run(tmp_path / "run", kind)
    for entry in run.videos:
        image = picture(timeline(run, tmp_path / f"{entry.video_id}.png", video_id=entry.video_id))
        assert image.shape[1] == WIDTH_PX


def test_the_timeline_shows_presence_and_gaps(tmp_path: Path) -> None:
    image = picture(timeline(pictured_run(tmp_path), tmp_path / "t.png"))
    left, right = 278, WIDTH_PX - 48
    y = 118 + 46 + 26 + 13  # the second row of the first phrase
    bar = image[y - 5].astype(int)
    at = [left + round((frame + 0.5) / 40 * (right - left)) for frame in (2, 8, 15, 25, 35)]
    coloured = [bool(np.abs(bar[x] - PAPER).max() > 30) for x in at]
    assert coloured == [False, True, False, True, False]


def test_the_timeline_grows_no_further_than_its_limit(tmp_path: Path) -> None:
    image = picture(timeline(make_run(tmp_path / "run", "many_ids"), tmp_path / "t.png"))
    assert image.shape[0] < 3000


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the picture"):
        timeline_function(make_run(tmp_path / "run"), tmp_path / "file" / "t.png")


def test_lives_have_every_row(tmp_path: Path) -> None:
    lives = lives_of(pictured_run(tmp_path), "clip")
    assert [one.masklet_id for one in lives] == [1, 2, 3]
    assert lives[2].phrase == HOSTILE
    assert lives[0].frame.tolist() == [f for f in range(40) if f != 3]
    assert lives[1].frame.tolist() == [*range(5, 12), *range(20, 31)]
    np.testing.assert_allclose(lives[0].mean_score, (34 * 0.8 + 5 * 0.3) / 39, rtol=1e-6)


def test_a_late_start_does_not_stretch_the_axis(tmp_path: Path) -> None:
    run = pictured_run(
        tmp_path, footage=Footage(count=10, pts=[9_000_000 + 3000 * i for i in range(10)], suffix=".mkv")
    )
    start, stop = span_s(lives_of(run, "clip"), run.video())
    assert start == pytest.approx(100, abs=0.01)
    assert stop == pytest.approx(100 + 1 / 3, abs=0.05)


def test_shades_are_means_and_nan_where_it_is_away() -> None:
    one = Life(1, "cat", np.arange(4), np.array([0.0, 0.1, 0.2, 0.8]), np.array([1, 0.5, 0, 1], np.float32))
    out = shades(one, np.array([0, 0.2, 0.25, 0.31, 0.5, 0.8, 1.0]), 0.1)
    np.testing.assert_allclose(out, [0.75, 0, 0, np.nan, np.nan, 1], rtol=1e-6)


def test_moments_are_spread_over_the_life() -> None:
    assert moments_of(life([*range(11), *range(100, 110)]), 5).tolist() == [0, 5, 10, 104, 109]
    assert moments_of(life([7]), 6).tolist() == [7]
    assert moments_of(life([7, 9, 30]), 6).tolist() == [7, 9, 30]


def test_the_longest_are_kept_in_order_of_id() -> None:
    lives = [Life(i, "x", *(np.zeros(n),) * 3) for i, n in ((1, 3), (2, 9), (3, 1), (4, 5))]  # type: ignore[arg-type]
    assert [one.masklet_id for one in longest(lives, 2)] == [2, 4]


@pytest.mark.parametrize(
    ("seconds", "step", "text"),
    [(0, 1, "0:00"), (61.26, 0.1, "1:01.3"), (59.999, 0.1, "1:00.0"), (3725, 1, "1:02:05"), (-1.5, 0.1, "-0:01.5")],
)
def test_clock(seconds: float, step: float, text: str) -> None:
    assert clock(seconds, step) == text


@pytest.mark.parametrize(("duration", "tick"), [(4, 0.5), (60, 10), (3600, 600), (0.05, 0.01), (1e7, 1e6)])
def test_ticks_are_round(duration: float, tick: float) -> None:
    assert tick_s(duration, 10) == tick


def test_stretches() -> None:
    assert stretches(np.array([1, 2, 3, 7, 9, 10])) == [(1, 3), (7, 7), (9, 10)]
