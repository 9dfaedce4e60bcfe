"""Draws one frame's masklets onto its picture, in place. Work is confined to each object's box."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.errors import UsageError
from pipeline.render.labels import Placer, chip, paste_chip, shorten
from pipeline.render.palette import RGB, colour
from pipeline.results import FrameResult
from pipeline.types import RLE, UInt8Array

STYLES = ("mask", "box", "id", "trace")
"""What can be drawn: filled masks with contours, boxes, id and phrase, the path of the last seconds."""

FILL_SHARE = 0.25
"""How much of the colour a filled mask mixes into the picture."""
TRACE_S = 2.0
"""How far back a trace reaches."""
_SHIFT = 3  # cv2 takes fixed-point coordinates with so many fractional bits


def check_style(style: Collection[str]) -> tuple[str, ...]:
    """The styles in drawing order.

    Raises:
        UsageError: an unknown style.
    """
    unknown = [s for s in style if s not in STYLES]
    if unknown or not style:
        raise UsageError(f"unknown style {', '.join(unknown)!r}", "", f"choose from {', '.join(STYLES)}")
    return tuple(s for s in STYLES if s in style)


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes that follow the picture's, so that a drawing looks alike from 112 px to 4K."""

    stroke_px: int
    font_px: int

    @classmethod
    def of(cls, size: tuple[int, int]) -> Scale:
        """For a frame of ``(height, width)``."""
        short = min(size)
        return cls(stroke_px=max(1, round(short / 400)), font_px=max(10, round(short / 40)))


@dataclass(frozen=True, slots=True)
class Cutout:
    """A mask within its tight box."""

    x: int
    y: int
    inside: UInt8Array
    """``(h, w)``, 1 inside."""


def cut_out(rle: RLE) -> Cutout | None:
    """The mask cropped to its tight box, or ``None`` if it is empty."""
    coco = rle.to_coco()
    x, y, w, h = (int(v) for v in coco_mask.toBbox(coco))
    if w <= 0 or h <= 0:
        return None
    whole: UInt8Array = coco_mask.decode(coco)  # column-major: a crop of columns stays cheap
    return Cutout(x, y, np.ascontiguousarray(whole[y : y + h, x : x + w]))


def outlines(cutout: Cutout) -> list[NDArray[np.int32]]:
    """Outer and inner boundaries of a mask as ``(n, 1, 2)`` pixel coordinates in the whole picture."""
    found, _ = cv2.findContours(cutout.inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(cutout.x, cutout.y))
    return [np.asarray(c, np.int32) for c in found]


def _tint(rgb: RGB, share: float) -> UInt8Array:
    """The lookup table ``(1, 256, 3)`` that mixes ``share`` of a colour into a picture."""
    values = np.arange(256)[:, None] * (1 - share) + np.array(rgb)[None] * share
    return values.round().astype(np.uint8)[None]


def fill(image: UInt8Array, cutout: Cutout, rgb: RGB) -> None:
    """Mix the colour into the mask's pixels."""
    h, w = cutout.inside.shape
    window = image[cutout.y : cutout.y + h, cutout.x : cutout.x + w]
    cv2.copyTo(cv2.LUT(window, _tint(rgb, FILL_SHARE)), cutout.inside, window)


def contour(image: UInt8Array, cutout: Cutout, rgb: RGB, stroke_px: int) -> None:
    """The mask's outline in its colour over a wider dark one, so that it shows on any background."""
    lines = outlines(cutout)
    if stroke_px > 1:
        cv2.polylines(image, lines, True, (20, 20, 22), stroke_px + 2, cv2.LINE_AA)
    cv2.polylines(image, lines, True, rgb, stroke_px, cv2.LINE_AA)


class Drawer:
    """Draws the frames of one video in time order; remembers traces and label places of objects in view."""

    def __init__(self, size: tuple[int, int], style: Collection[str] = STYLES, scale: Scale | None = None) -> None:
        self._style = check_style(style)
        self._scale = scale or Scale.of(size)
        self._placer = Placer(size)
        self._paths: dict[int, deque[tuple[float, float, float]]] = {}

    def draw(self, image: UInt8Array, result: FrameResult) -> None:
        """Draw onto ``image``, RGB ``(H, W, 3)`` at source resolution, in place."""
        if "mask" in self._style:
            self._masks(image, result)
        if "box" in self._style:
            self._boxes(image, result)
        if "trace" in self._style:
            self._traces(image, result)
        if "id" in self._style:
            self._labels(image, result)

    def _masks(self, image: UInt8Array, result: FrameResult) -> None:
        """Fills from large to small, so that what is in front of something larger stays visible; then contours."""
        order = np.argsort(-result.area_px(), kind="stable")
        cutouts = [(int(result.masklet_id[i]), cut_out(result.rles[i])) for i in order]
        for masklet_id, cutout in cutouts:
            if cutout is not None:
                fill(image, cutout, colour(masklet_id))
        for masklet_id, cutout in cutouts:
            if cutout is not None:
                contour(image, cutout, colour(masklet_id), self._scale.stroke_px)

    def _boxes(self, image: UInt8Array, result: FrameResult) -> None:
        thickness = max(1, self._scale.stroke_px // 2)
        for masklet_id, box in zip(result.masklet_id, result.xyxy, strict=True):
            x1, y1, x2, y2 = (round(float(v)) for v in box)
            cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), colour(int(masklet_id)), thickness)

    def _traces(self, image: UInt8Array, result: FrameResult) -> None:
        self._remember(result)
        for masklet_id, path in self._paths.items():
            points = np.array([(x, y) for _, x, y in path], np.float64)
            if np.ptp(points, axis=0).max() < 6 * self._scale.stroke_px:
                continue  # it stands still: a speck on it would tell nothing
            fixed = (points * 2**_SHIFT).round().astype(np.int32)[:, None]
            for tail in range(3):  # three thirds, the older the thinner
                part = fixed[len(fixed) * tail // 3 : len(fixed) * (tail + 1) // 3 + 1]
                thickness = max(1, round(self._scale.stroke_px * (tail + 1) / 2))
                cv2.polylines(image, [part], False, colour(masklet_id), thickness, cv2.LINE_AA, _SHIFT)

    def _remember(self, result: FrameResult) -> None:
        """Extend the paths of visible objects; forget points that are too old, and objects out of view."""
        centres = (result.xyxy[:, :2] + result.xyxy[:, 2:]) / 2
        paths = {int(i): self._paths.get(int(i), deque(maxlen=512)) for i in result.masklet_id}
        for path, (x, y) in zip(paths.values(), centres, strict=True):
            path.append((result.pts_s, float(x), float(y)))
            while path[0][0] < result.pts_s - TRACE_S:
                path.popleft()
        self._paths = paths

    def _labels(self, image: UInt8Array, result: FrameResult) -> None:
        """Id and phrase of each object; where that finds no free place, the id alone."""
        ids = [int(i) for i in result.masklet_id]
        font_px = self._scale.font_px
        chips = [
            (chip(f"{i} {shorten(phrase, 28)}", font_px, colour(i)), chip(str(i), font_px, colour(i)))
            for i, phrase in zip(ids, result.prompt, strict=True)
        ]
        places = self._placer.place(ids, result.xyxy, [(full.size, short.size) for full, short in chips])
        for versions, (version, x, y) in zip(chips, places, strict=True):
            paste_chip(image, versions[version], x, y)
