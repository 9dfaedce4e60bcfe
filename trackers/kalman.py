"""A constant-velocity Kalman filter for many boxes at once. NumPy only.

State per box: centre x, y, aspect (width / height), height, and their velocities per frame. Noise is proportional to
the box height. Source: DeepSORT (Wojke et al. 2017) as used by ByteTrack (arXiv 2110.06864), same constants.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

_POSITION_WEIGHT = 1 / 20
_VELOCITY_WEIGHT = 1 / 160
_ASPECT_STD = 1e-2
_ASPECT_VELOCITY_STD = 1e-5
_ASPECT_NOISE_STD = 1e-1
_MOTION = np.eye(8) + np.eye(8, k=4)
_OBSERVE = np.eye(4, 8)


def measure(xyxy: NDArray[Any]) -> Float64Array:
    """``(N, 4)`` centre x, y, aspect and height of boxes ``(N, 4)``; degenerate boxes count as one pixel."""
    boxes = np.asarray(xyxy, np.float64)
    size = np.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.column_stack([centre, size[:, 0] / size[:, 1], size[:, 1]])


def boxes_of(mean: Float64Array) -> Float64Array:
    """``(N, 4)`` ``xyxy`` boxes of states ``(N, 8)``."""
    half = np.column_stack([mean[:, 2] * mean[:, 3], mean[:, 3]]) / 2
    return np.concatenate([mean[:, :2] - half, mean[:, :2] + half], axis=1)


def begin(measured: Float64Array) -> tuple[Float64Array, Float64Array]:
    """States ``(N, 8)`` and covariances ``(N, 8, 8)`` of boxes seen for the first time: at rest."""
    mean = np.concatenate([measured, np.zeros_like(measured)], axis=1)
    height = measured[:, 3]
    fixed = np.ones_like(height)
    std = np.column_stack(
        [
            *[2 * _POSITION_WEIGHT * height] * 2, _ASPECT_STD * fixed, 2 * _POSITION_WEIGHT * height,
            *[10 * _VELOCITY_WEIGHT * height] * 2, _ASPECT_VELOCITY_STD * fixed, 10 * _VELOCITY_WEIGHT * height,
        ]
    )  # fmt: skip
    return mean, _diagonal(std)


def predict(mean: Float64Array, covariance: Float64Array) -> tuple[Float64Array, Float64Array]:
    """One frame later."""
    height = mean[:, 3]
    fixed = np.ones_like(height)
    std = np.column_stack(
        [
            *[_POSITION_WEIGHT * height] * 2, _ASPECT_STD * fixed, _POSITION_WEIGHT * height,
            *[_VELOCITY_WEIGHT * height] * 2, _ASPECT_VELOCITY_STD * fixed, _VELOCITY_WEIGHT * height,
        ]
    )  # fmt: skip
    return mean @ _MOTION.T, _MOTION @ covariance @ _MOTION.T + _diagonal(std)


def update(
    mean: Float64Array, covariance: Float64Array, measured: Float64Array, doubt: Float64Array | None = None
) -> tuple[Float64Array, Float64Array]:
    """Correct predicted states by what was measured ``(N, 4)``.

    ``doubt``: ``(N, 2)`` further standard deviation of the measured centres x, y.
    """
    height = mean[:, 3]
    std = np.column_stack([*[_POSITION_WEIGHT * height] * 2, _ASPECT_NOISE_STD * np.ones_like(height), height / 20])
    if doubt is not None:
        std[:, :2] = np.hypot(std[:, :2], doubt)
    projected = covariance[:, :4, :4] + _diagonal(std)
    gain = np.linalg.solve(projected, covariance[:, :4]).transpose(0, 2, 1)
    innovation = measured - mean[:, :4]
    mean = mean + (gain @ innovation[:, :, None])[:, :, 0]
    return mean, covariance - gain @ projected @ gain.transpose(0, 2, 1)


def _diagonal(std: Float64Array) -> Float64Array:
    return np.eye(std.shape[1]) * (std**2)[:, None]
