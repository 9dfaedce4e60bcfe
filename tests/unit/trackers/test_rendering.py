from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.masks import decode
from pipeline.types import Frame
from trackers import rendering
from trackers.rendering import LowResTracks, render


def _frame(size: tuple[int, int]) -> Frame:
    return Frame("s", 7, 0.25, np.zeros((2, 2, 3), np.uint8), size)


def _tracks(logits: torch.Tensor, score: list[float], prompt: list[int] | None = None) -> LowResTracks:
    n = len(logits)
    return LowResTracks(
        np.arange(1, n + 1, dtype=np.int64),
        np.array(prompt or [0] * n, np.int16),
        np.array(score, np.float32),
        logits,
        np.array([99], np.int64),
    )


def _smooth(seed: int, n: int, side: int) -> torch.Tensor:
    noise = torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 5, stride=1, padding=2)[:, 0]


def _whole(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0] > 0


@pytest.mark.parametrize("size", [(32, 32), (97, 210), (300, 41), (20, 15), (1, 5)])
def test_windows_equal_enlarging_everything(size: tuple[int, int]) -> None:
    logits = _smooth(0, 6, 32)
    got = render(_tracks(logits, [0.5] * 6, list(range(6))), _frame(size))
    want = _whole(logits, size).numpy()
    rows = (got.track_id - 1).tolist()
    assert rows == [i for i in range(6) if want[i].any()]
    different = (decode(got.masks) != want[rows]).mean()
    assert different < 1e-5  # rounding at exactly zero


def test_each_pixel_goes_to_the_best_score_of_its_phrase() -> None:
    logits = _smooth(1, 4, 32)
    score, prompt = [0.3, 0.9, 0.6, 0.5], [0, 0, 0, 1]
    got = decode(render(_tracks(logits, score, prompt), _frame((64, 64))).masks)
    want = _whole(logits, (64, 64)).numpy()
    want[2] &= ~want[1]
    want[0] &= ~(want[1] | want[2])
    assert (got == want).all()


def test_slices_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    tracks = _tracks(_smooth(2, 7, 32), [0.5, 0.6, 0.5, 0.9, 0.1, 0.2, 0.3])
    whole = render(tracks, _frame((120, 90)))
    monkeypatch.setattr(rendering, "_SLICE_PX", 1)
    assert render(tracks, _frame((120, 90))).masks == whole.masks


def test_equal_scores_go_to_the_older_object() -> None:
    full = torch.ones(2, 8, 8)
    assert render(_tracks(full, [0.5, 0.5]), _frame((8, 8))).track_id.tolist() == [1]


def test_boxes_are_those_of_the_final_masks() -> None:
    logits = torch.full((2, 8, 8), -1.0)
    logits[0, :, :] = 1
    logits[1, 2:4, :] = 1
    got = render(_tracks(logits, [0.1, 0.9]), _frame((8, 8)))
    assert got.xyxy.tolist() == [[0, 0, 8, 8], [0, 2, 8, 4]]
    assert decode(got.masks)[0].sum() == 48


def test_nothing_to_show() -> None:
    got = render(_tracks(torch.full((2, 8, 8), -1.0), [0.5, 0.6]), _frame((30, 40)), session=3)
    assert len(got) == 0
    assert (got.session, got.index, got.withdrawn.tolist()) == (3, 7, [99])
    assert len(render(_tracks(torch.zeros(0, 8, 8), []), _frame((30, 40)))) == 0
