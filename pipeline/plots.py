"""Evaluations as pictures: scores of every video and phrase, and HOTA over the localisation threshold (PNG)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.evaluate.report import COUNTS, Comparison, EvalReport, show
from pipeline.evaluate.scoring import Scores
from pipeline.evaluate.sequence import Float64Array
from pipeline.render.page import HAIRLINE, INK, MARGIN_PX, PAPER, QUIET, WIDTH_PX, Page, mixed
from pipeline.render.palette import BASE, RGB

MAX_ROWS = 60
"""Videos and phrases that are drawn, the worst of each first."""
_HEAD_PX, _FOOT_PX, _ROW_PX, _GAP_PX = 150, 40, 30, 46
_NAME_PX = 300
_RUNS: tuple[RGB, RGB] = (BASE[5], BASE[6])
_CURVES: dict[str, RGB] = {"HOTA": INK, "DetA": BASE[5], "AssA": BASE[6], "LocA": BASE[3]}
_SMOOTH = 4  # curves are drawn so many times larger, then reduced


def write_plots(result: EvalReport | Comparison, folder: Path) -> list[Path]:
    """Write ``scores.png`` and, where HOTA was asked for, ``hota.png``; returns the files.

    Raises:
        UsageError: they cannot be written.
    """
    reports = (result.first, result.second) if isinstance(result, Comparison) else (result,)
    files = [_scores(reports, folder / "scores.png")]
    if reports[0].curves:
        files.append(_hota(reports, folder / "hota.png"))
    return files


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    scores: tuple[Mapping[str, float], ...]
    """Of each run."""


def _scores(reports: Sequence[EvalReport], out: Path) -> Path:
    """A bar for each headline score of each video and phrase."""
    kind = reports[0].kinds[0]
    columns = [c for c in reports[0].columns() if c not in COUNTS]
    groups = [
        ("", [_Line("overall", tuple(r.overall[kind] for r in reports))]),
        ("videos", _lines([r.videos for r in reports], kind, columns)),
        ("phrases", _lines([r.phrases for r in reports], kind, columns)),
    ]
    groups = [(title, lines) for title, lines in groups if not title or len(lines) > 1]
    shown = {title: lines[:MAX_ROWS] for title, lines in groups}
    page = Page(_HEAD_PX + sum(len(lines) * _ROW_PX + _GAP_PX for lines in shown.values()) + _FOOT_PX)
    _heading(page, reports, f"scores × 100, on {'boxes' if kind == 'box' else 'masks'}", groups)
    width = (WIDTH_PX - 2 * MARGIN_PX - _NAME_PX) / max(1, len(columns))
    lefts = [MARGIN_PX + _NAME_PX + i * width for i in range(len(columns))]
    for column, left in zip(columns, lefts, strict=True):
        page.text(left, _HEAD_PX - 14, column, 17)
    y = _HEAD_PX
    for title, lines in shown.items():
        page.text(MARGIN_PX, y + 24, title, 17, QUIET)
        page.rule(MARGIN_PX, y + 34, WIDTH_PX - MARGIN_PX, y + 34)
        y += _GAP_PX
        for line in lines:
            page.text(MARGIN_PX, y + 17, line.name, 17, room_px=_NAME_PX - 24)
            for column, left in zip(columns, lefts, strict=True):
                _bars(page, int(left), y, int(width) - 22, column, line)
            y += _ROW_PX
    return page.save(out)


def _lines(groups: Sequence[Mapping[str, Scores]], kind: str, columns: Sequence[str]) -> list[_Line]:
    """The group's lines, the worst of the last run first."""
    names = groups[-1]
    lines = [_Line(name, tuple(g.get(name, {}).get(kind, {}) for g in groups)) for name in names]
    lines = [line for line in lines if any(not math.isnan(v) for scores in line.scores for v in scores.values())]
    return sorted(lines, key=lambda line: _number(line.scores[-1].get(columns[0])) if columns else 0.0)


def _number(value: float | None) -> float:
    return 0.0 if value is None or math.isnan(value) else value


def _bars(page: Page, left: int, top: int, width: int, column: str, line: _Line) -> None:
    """One thin bar per run, the last run's score written behind it."""
    room = width - 58
    height = 14 if len(line.scores) == 1 else 8
    for row, scores in enumerate(line.scores):
        value = min(1.0, max(0.0, _number(scores.get(column))))
        y = top + 4 + row * (height + 2)
        pixels = np.full((height, room, 3), mixed(_RUNS[row], 0.16), np.uint8)
        pixels[:, : round(value * room)] = _RUNS[row]
        page.picture(left, y, pixels, radius_px=2)
    page.text(left + room + 8, top + 17, show(column, line.scores[-1].get(column)), 15)


def _heading(
    page: Page, reports: Sequence[EvalReport], subtitle: str, groups: Sequence[tuple[str, Sequence[_Line]]]
) -> None:
    left_out = [f"the {MAX_ROWS} worst of {len(lines)} {title}" for title, lines in groups if len(lines) > MAX_ROWS]
    page.text(MARGIN_PX, 52, " and ".join(r.name for r in reports), 28, room_px=WIDTH_PX - 2 * MARGIN_PX)
    page.text(MARGIN_PX, 80, " · ".join([subtitle, *left_out]), 17, QUIET)
    if len(reports) > 1:
        _legend(page, {r.name: c for r, c in zip(reports, _RUNS, strict=True)}, 108)


def _legend(page: Page, colours: Mapping[str, RGB], y: int) -> None:
    x = MARGIN_PX
    for name, rgb in colours.items():
        page.dot(x + 7, y - 6, 7, rgb)
        page.text(x + 22, y, name, 16, room_px=320)
        x += 60 + min(320, 10 * len(name))


def _hota(reports: Sequence[EvalReport], out: Path) -> Path:
    """HOTA and its parts over the threshold, a panel for masks and one for boxes."""
    kinds = list(reports[0].curves)
    page = Page(760)
    page.text(MARGIN_PX, 52, " and ".join(r.name for r in reports), 28, room_px=WIDTH_PX - 2 * MARGIN_PX)
    dashed = f"; dashed: {reports[0].name}" if len(reports) > 1 else ""
    page.text(MARGIN_PX, 80, f"accuracy over the IoU that counts as localised{dashed}", 17, QUIET)
    _legend(page, _CURVES, 112)
    width = (WIDTH_PX - 2 * MARGIN_PX - 60 * (len(kinds) - 1)) // len(kinds)
    for i, kind in enumerate(kinds):
        left = MARGIN_PX + i * (width + 60)
        page.text(left + 40, 156, "masks" if kind == "mask" else "boxes", 17)
        _panel(page, left + 40, 170, width - 40, 500, [r.curves[kind] for r in reports])
    return page.save(out)


def _panel(
    page: Page, left: int, top: int, width: int, height: int, runs: Sequence[Mapping[str, Float64Array]]
) -> None:
    page.picture(left, top, _curves(width, height, runs))
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        page.text(left - 10, top + height * (1 - tick) + 5, f"{100 * tick:.0f}", 15, QUIET, anchor="rs")
        page.text(left + width * tick, top + height + 26, f"{tick:g}", 15, QUIET, anchor="ms")
    page.text(left + width / 2, top + height + 52, "IoU threshold", 15, QUIET, anchor="ms")


def _curves(width: int, height: int, runs: Sequence[Mapping[str, Float64Array]]) -> np.ndarray:
    canvas = np.full((height * _SMOOTH, width * _SMOOTH, 3), PAPER, np.uint8)
    scale = np.array([width, height]) * _SMOOTH - 1
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        for start, stop in (((0, tick), (1, tick)), ((tick, 0), (tick, 1))):
            ends = [tuple(int(v) for v in np.array(p) * scale) for p in (start, stop)]
            cv2.line(canvas, ends[0], ends[1], HAIRLINE, _SMOOTH)
    for run, curves in enumerate(runs):
        for name, rgb in _CURVES.items():
            points = np.stack([curves["alpha"], 1 - curves[name]], axis=1) * scale
            thickness = (4 if name == "HOTA" else 2) * _SMOOTH
            for a, b in _dashes(points, solid=run == len(runs) - 1):
                cv2.line(canvas, a, b, rgb, thickness)
    reduced = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(reduced)


def _dashes(points: Float64Array, *, solid: bool) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The segments of a line, or every other half of them."""
    ends = points if solid else (points[:-1] + points[1:]) / 2
    return [
        ((round(a[0]), round(a[1])), (round(b[0]), round(b[1])))
        for a, b in zip(points[:-1], ends[1:] if solid else ends, strict=True)
    ]
