"""Where objects were last seen and where they will be: a Kalman filter per object and a few clocks. NumPy."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pipeline.types import BoolArray, Int64Array
from trackers import kalman
from trackers.kalman import Float64Array

_FADE = 0.98
"""Share of the extent that is left after a frame on which less was seen: something that recedes is not "half hidden"
for longer than a second or two."""
_SIZE_DOUBT = 1.0
"""Standard deviation of a centre, beside the change of the box's side since the sight before: when one edge goes behind
something, or runs over into a neighbour, the middle moves by half of that although nothing need have moved."""
_AREA_RATE, _SLOW_AREA_RATE = 0.3, 0.02
"""Weight of the newest sight in the area of the whole when nobody is near, and when somebody is: what has really grown
is believed to have after a second."""


def extents(boxes: NDArray[np.float64]) -> Float64Array:
    """``(N,)`` square root of the area of boxes ``(N, 4)``; no side is under one pixel."""
    side = np.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)
    return np.asarray(np.sqrt(side[:, 0] * side[:, 1]))


@dataclass(slots=True)
class Trajectories:
    """Columns over M objects; coordinates in pixels of low-resolution masks."""

    mean: Float64Array
    """``(M, 8)`` see :mod:`trackers.kalman`."""
    covariance: Float64Array
    """``(M, 8, 8)``"""
    box: Float64Array
    """``(M, 4)`` xyxy of the last mask."""
    extent: Float64Array
    """``(M,)`` square root of the box area when all of the object is seen: a maximum that fades.

    What was last seen of something that went behind a screen is a sliver; how far it may have gone since and how large
    it comes back is told by the whole.
    """
    area: Float64Array
    """``(M,)`` pixels of the masks, a running mean; what is seen while others are near hardly counts."""
    unseen: Int64Array
    """``(M,)`` frames since a detection was the object's."""
    skipped: Int64Array
    """``(M,)`` frames since then that nobody saw: they widen where it may be and make it no older."""
    since_attention: Int64Array
    """``(M,)`` frames without attention since it last ran for the object."""
    pending: Int64Array
    """``(M,)`` 1: its mask of the last frame is not in memory yet."""

    @classmethod
    def none(cls) -> Trajectories:
        """No objects."""
        clocks = (np.zeros(0, np.int64) for _ in range(4))
        return cls(np.zeros((0, 8)), np.zeros((0, 8, 8)), np.zeros((0, 4)), np.zeros(0), np.zeros(0), *clocks)

    @classmethod
    def begin(cls, boxes: NDArray[np.float64], area: Float64Array, since_attention: Int64Array) -> Trajectories:
        """New objects at ``boxes`` ``(K, 4)`` with ``area`` ``(K,)``, just seen, in memory."""
        mean, covariance = kalman.begin(kalman.measure(boxes))
        zeros = np.zeros(len(boxes), np.int64)
        whole = boxes.astype(np.float64)
        return cls(mean, covariance, whole, extents(whole), area, zeros, zeros.copy(), since_attention, zeros.copy())

    def __len__(self) -> int:
        return len(self.unseen)

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return sum(column.nbytes for column in self.columns().values())

    def columns(self) -> dict[str, NDArray[np.float64] | Int64Array]:
        """Everything, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def predict(self) -> None:
        """One frame later; what is out of sight neither grows nor shrinks."""
        self.mean[self.unseen > 0, 6:] = 0
        self.mean, self.covariance = kalman.predict(self.mean, self.covariance)

    def skip(self, num_frames: int) -> None:
        """So many frames never came; where things were heading before says little about where they are."""
        self.skipped += num_frames
        self.mean[:, 4:] = 0

    @property
    def centre(self) -> Float64Array:
        """``(M, 2)`` x, y as predicted or corrected."""
        return self.mean[:, :2]

    @property
    def shift(self) -> Int64Array:
        """``(M, 2)`` whole pixels x, y from the last mask to the predicted place."""
        last = (self.box[:, :2] + self.box[:, 2:]) / 2
        return np.rint(self.centre - last).astype(np.int64)

    def see(
        self, rows: Int64Array, boxes: Float64Array, area: Float64Array, plain: BoolArray, doubt: Float64Array
    ) -> None:
        """Objects ``rows`` were seen at ``boxes`` ``(n, 4)``.

        Args:
            area: ``(n,)`` pixels of the masks.
            plain: ``(n,)`` nobody else is near: the area is the object's own.
            doubt: ``(n,)`` standard deviation, in the objects' sizes, of where they are, beside what their boxes tell.
        """
        if len(rows) == 0:
            return
        side, before = (box[:, 2:] - box[:, :2] for box in (boxes, self.box[rows]))
        self.box[rows] = boxes
        self.extent[rows] = np.maximum(extents(boxes), _FADE * self.extent[rows])
        self.area[rows] += np.where(plain, _AREA_RATE, _SLOW_AREA_RATE) * (area - self.area[rows])
        doubts = np.hypot(_SIZE_DOUBT * (side - before), (doubt * self.extent[rows])[:, None])
        measured = kalman.measure(boxes)
        self.mean[rows], self.covariance[rows] = kalman.update(self.mean[rows], self.covariance[rows], measured, doubts)

    def keep(self, rows: BoolArray) -> None:
        """Forget all other rows."""
        for name, column in self.columns().items():
            setattr(self, name, column[rows])

    def append(self, new: Trajectories) -> None:
        """Take over the objects of ``new``."""
        for name, column in self.columns().items():
            setattr(self, name, np.concatenate([column, getattr(new, name)]))
