"""Benchmarks as pictures: milliseconds per frame by part of the work, a bar per contestant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.render.page import MARGIN_PX, QUIET, WIDTH_PX, Page
from pipeline.render.palette import BASE, RGB

_ROW_PX, _NAME_PX, _BAR_PX, _ROOM_PX = 34, 380, 22, 150
_FILLS: dict[str, RGB] = {
    "image encoder": BASE[0],
    "detection": BASE[1],
    "neck": BASE[2],
    "attention": BASE[5],
    "memory": BASE[6],
    "plan": BASE[3],
    "render": BASE[4],
}


def write_plot(results: Sequence[dict[str, Any]], out: Path) -> Path:
    """Write the picture; each case has a scale of its own.

    Args:
        results: per case ``{"case": its name, "contestants": {name: {"wall_ms", "part_ms": {part: ms}, "label"}}}``;
            parts count as shares of ``wall_ms``, and the label stands behind the bar.
        out: a PNG file.
    """
    rows = sum(len(r["contestants"]) + 1 for r in results)
    page = Page(150 + rows * _ROW_PX + 40)
    page.text(MARGIN_PX, 52, "Time per frame, by part of the work", 28)
    page.text(MARGIN_PX, 80, "same weights, frames and objects, taking turns; every case has its own scale", 17, QUIET)
    x = MARGIN_PX
    for part, rgb in _FILLS.items():
        page.dot(x + 7, 106, 7, rgb)
        page.text(x + 22, 112, part, 16)
        x += 160
    y = 140
    for result in results:
        page.text(MARGIN_PX, y + 24, result["case"], 18)
        y += _ROW_PX
        longest = max(one["wall_ms"] for one in result["contestants"].values())
        for name, one in result["contestants"].items():
            _bar(page, y, name, one, longest)
            y += _ROW_PX
    return page.save(out)


def _bar(page: Page, y: int, name: str, one: dict[str, Any], longest_ms: float) -> None:
    page.text(MARGIN_PX + 24, y + 20, name, 16, QUIET)
    left, room = MARGIN_PX + _NAME_PX, WIDTH_PX - 2 * MARGIN_PX - _NAME_PX - _ROOM_PX
    total = sum(one["part_ms"].values()) or 1
    for part, rgb in _FILLS.items():
        # Parts are shares of the median; they were measured over all frames.
        share = one["part_ms"].get(part, 0) / total * one["wall_ms"] / longest_ms
        width = round(share * room)
        if width:
            page.picture(left, y + 2, np.full((_BAR_PX, width, 3), rgb, np.uint8))
            left += width
    page.text(left + 10, y + 20, one["label"], 16)
