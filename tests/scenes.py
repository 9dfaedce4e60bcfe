"""Seeded moving shapes with exact masks: occlusion, crossings, re-entry, arrivals and departures.

Shapes are drawn back to front, so a mask is what is visible. Rendered at twice the size of the masks asked for, a
scene also serves as detector input.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.types import BoolArray, Detections, Frame, UInt8Array

COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 80, 230), "yellow": (235, 215, 50)}


@dataclass(frozen=True)
class Actor:
    """One shape and its path. Positions and sizes are fractions of the picture's side."""

    prompt_id: int
    shape: str
    """``circle`` or ``square``"""
    colour: str
    radius: float
    start: tuple[float, float]
    velocity: tuple[float, float]
    wobble: float
    born: int
    gone: int
    """First frame on which it is out of the picture for good."""

    def centre(self, t: int) -> tuple[float, float]:
        """x, y at frame ``t``; bounces between -0.1 and 1.1, so that it leaves the picture and comes back."""
        x = self.start[0] + self.velocity[0] * t
        y = self.start[1] + self.velocity[1] * t + self.wobble * np.sin(t / 3)
        return _bounce(x), _bounce(y)


@dataclass(frozen=True)
class Scene:
    """Actors back to front on a textured background."""

    actors: tuple[Actor, ...]
    num_frames: int
    seed: int

    def masks(self, t: int, size: tuple[int, int]) -> BoolArray:
        """``(N, H, W)`` visible pixels of every actor, empty where it is hidden, outside or not alive."""
        canvas = np.full(size, -1, np.int32)
        for i, actor in enumerate(self.actors):
            canvas[_drawn(actor, t, size)] = i
        return np.asarray(canvas[None] == np.arange(len(self.actors))[:, None, None])

    def outlines(self, t: int, size: tuple[int, int]) -> BoolArray:
        """``(N, H, W)`` whole shapes, also where another one covers them."""
        return np.stack([_drawn(actor, t, size) for actor in self.actors])

    def image(self, t: int, size: tuple[int, int]) -> UInt8Array:
        """``(H, W, 3)`` RGB with noise of its own on every frame."""
        rng = np.random.default_rng((self.seed, t))
        grain = np.random.default_rng(self.seed).integers(60, 120, (8, 8, 3)).astype(np.uint8)
        picture = cv2.resize(grain, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        for actor in self.actors:
            picture[_drawn(actor, t, size)] = COLOURS[actor.colour]
        noisy = picture.astype(np.int16) + rng.integers(-8, 9, picture.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8)

    def frame(self, t: int, size: tuple[int, int]) -> Frame:
        """The picture as a :class:`Frame` at its own size."""
        return Frame(f"scene-{self.seed}", t, t / 24, self.image(t, size), size)

    def detections(self, t: int, size: tuple[int, int], *, score: float = 0.95, min_pixels: int = 4) -> Detections:
        """Exact masks (logits of -8 and 8) of all visible actors, sorted by prompt."""
        masks = self.masks(t, size)
        order = sorted(range(len(self.actors)), key=lambda i: self.actors[i].prompt_id)
        rows = [i for i in order if masks[i].sum() >= min_pixels]
        return Detections(
            boxes(masks[rows]),
            np.full(len(rows), score, np.float32),
            np.array([self.actors[i].prompt_id for i in rows], np.int16),
            np.where(masks[rows], 8, -8).astype(np.float32),
        )


def make_scene(
    seed: int, *, num_actors: int = 4, num_frames: int = 30, num_prompts: int = 1, arrivals: bool = True
) -> Scene:
    """Random actors; without ``arrivals`` all are there from the first frame to the last."""
    rng = np.random.default_rng(seed)
    actors = []
    for i in range(num_actors):
        born, gone = 0, num_frames
        if arrivals and i % 2:
            born = int(rng.integers(1, num_frames // 2))
        if arrivals and i % 3 == 2:
            gone = int(rng.integers(num_frames // 2, num_frames))
        actors.append(
            Actor(
                prompt_id=i % num_prompts,
                shape=("circle", "square")[int(rng.integers(2))],
                colour=list(COLOURS)[int(rng.integers(len(COLOURS)))],
                radius=float(rng.uniform(0.08, 0.16)),
                start=(float(rng.uniform(0.15, 0.85)), float(rng.uniform(0.15, 0.85))),
                velocity=(float(rng.uniform(-0.03, 0.03)), float(rng.uniform(-0.02, 0.02))),
                wobble=float(rng.uniform(0, 0.05)),
                born=born,
                gone=gone,
            )
        )
    return Scene(tuple(actors), num_frames, seed)


def boxes(masks: BoolArray) -> NDArray[np.float32]:
    """``(N, 4)`` tight boxes of non-empty masks."""
    out = np.zeros((len(masks), 4), np.float32)
    for row, mask in zip(out, masks, strict=True):
        ys, xs = np.nonzero(mask)
        row[:] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    return out


def _bounce(x: float) -> float:
    low, span = -0.1, 1.2
    folded = (x - low) % (2 * span)
    return low + (folded if folded < span else 2 * span - folded)


def _drawn(actor: Actor, t: int, size: tuple[int, int]) -> BoolArray:
    """Where the actor would be if nothing stood in front of it."""
    if not actor.born <= t < actor.gone:
        return np.zeros(size, bool)
    x, y = actor.centre(t)
    ys = (np.arange(size[0]) + 0.5)[:, None] / size[0] - y
    xs = (np.arange(size[1]) + 0.5)[None] / size[1] - x
    if actor.shape == "circle":
        return np.asarray(xs**2 + ys**2 <= actor.radius**2)
    return np.asarray((np.abs(xs) <= actor.radius) & (np.abs(ys) <= actor.radius))
