"""Procedural pictures: coloured things on photograph-like backgrounds, exact visible masks, and what to ask about them.

Everything is drawn from one seeded `numpy.random.Generator`, so a seed names a picture.
    python -m models.recipe.scenes --out preview.png
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.recipe.vocabulary import HELD_OUT, N_COLOURS, N_SHAPES, SHAPES, Query, phrase

cv2.setNumThreads(1)
Rng = np.random.Generator
F32 = NDArray[Any]  # float32; numpy's stubs widen arithmetic with Python floats to float64
U8 = NDArray[Any]  # uint8

SIZE = 224
MIN_PIXELS = 36  # of a SIZE x SIZE scene; a thing with fewer visible pixels is not asked about
_PALETTE_HSV = (  # hue (OpenCV half degrees), saturation, value ranges; gaps between neighbours keep names unambiguous
    ((-6, 5), (185, 255), (135, 255)),
    ((9, 15), (200, 255), (205, 255)),
    ((23, 33), (150, 255), (190, 255)),
    ((42, 76), (120, 255), (90, 225)),
    ((85, 95), (130, 255), (170, 255)),
    ((104, 121), (150, 255), (120, 255)),
    ((131, 150), (110, 255), (105, 225)),
    ((0, 179), (0, 20), (222, 255)),
)


@dataclass(frozen=True)
class Thing:
    """One drawn object. Lengths in pixels of the square frame, angles in radians, rgb 0-255."""

    colour: int
    shape: int
    radius: float
    x: float
    y: float
    rotation: float
    stretch: tuple[float, float]
    rgb: tuple[float, float, float]
    look: str  # "flat", "shaded", "solid"
    light: tuple[float, float]  # direction and strength of the shading
    rim: bool
    hole: float
    mark: int  # seed of the printed letter on a block; 0 for none
    ridges: int = 0  # pressed rings around a cup
    smear: tuple[float, float] = (0.0, 0.0)  # how far it moves while the shutter is open, pixels

    def extent(self, size: int = SIZE) -> float:
        """Diameter over the frame width."""
        return 2 * self.radius / size


@dataclass(frozen=True)
class Scene:
    """A picture: image [S,S,3] uint8 RGB, ids [S,S] uint8 (0 background, i+1 = things[i]), boxes [n,4] xyxy 0-1."""

    image: U8
    ids: U8
    things: tuple[Thing, ...]
    boxes: F32

    def find(self, query: Query) -> list[int]:
        """Indices of the things that `query` asks for."""
        return [i for i, t in enumerate(self.things) if query.matches(t.colour, t.shape, t.extent(self.ids.shape[0]))]

    def like(self, index: int) -> list[int]:
        """Indices of the things with the colour and the shape of things[index], itself among them."""
        a = self.things[index]
        return [i for i, b in enumerate(self.things) if (a.colour, a.shape) == (b.colour, b.shape)]


# ------------------------------------------------------------------------------------------------ shapes
def _ngon(n: int, start: float = 0.0) -> F32:
    a = np.arange(n) * 2 * np.pi / n + start
    return np.stack([np.cos(a), np.sin(a)], 1).astype(np.float32)


def _outline(shape: str) -> F32:
    """Unit outline [k,2] of a shape, about one radius in each direction, y down."""
    if shape == "square":
        return _ngon(4, np.pi / 4) * 1.25
    if shape == "triangle":
        return _ngon(3, -np.pi / 2) * 1.2
    if shape == "star":
        return _ngon(10, -np.pi / 2) * np.where(np.arange(10) % 2, 0.48, 1.2)[:, None]
    if shape == "cross":
        w = 0.34
        quarter = [
            [-w, -1],
            [w, -1],
            [w, -w],
            [1, -w],
            [1, w],
            [w, w],
            [w, 1],
            [-w, 1],
            [-w, w],
            [-1, w],
            [-1, -w],
            [-w, -w],
        ]
        return np.array(quarter) * 1.05
    if shape == "heart":
        a = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        y = 13 * np.cos(a) - 5 * np.cos(2 * a) - 2 * np.cos(3 * a) - np.cos(4 * a)
        return np.stack([16 * np.sin(a) ** 3, -y - 2], 1) / 15.0
    if shape == "cup":
        side = np.linspace(0, np.pi, 12)
        top = np.stack([-0.6 * np.cos(side), -1 - 0.16 * np.sin(side)], 1)
        bottom = np.stack([0.82 * np.cos(side), 0.95 + 0.18 * np.sin(side)], 1)
        return np.concatenate([top, bottom])
    return _ngon(40)


_OUTLINES = {s: _outline(s) for s in SHAPES}


def _place(points: F32, t: Thing) -> F32:
    c, s = np.cos(t.rotation), np.sin(t.rotation)
    turned: F32 = points @ np.array([[c, s], [-s, c]])
    return np.asarray(turned * (t.radius * np.array(t.stretch)) + np.array([t.x, t.y]))


def _fill(mask: U8, points: F32, value: int) -> None:
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], value, cv2.LINE_AA, 4)


def coverage(t: Thing, size: int) -> U8:
    """Anti-aliased coverage [S,S] of one thing, 0-255."""
    mask = np.zeros((size, size), np.uint8)
    points = _place(_OUTLINES[SHAPES[t.shape]], t)
    _fill(mask, points, 255)
    if SHAPES[t.shape] == "ring":
        _fill(mask, _place(_OUTLINES["ring"] * t.hole, t), 0)
    return mask


def _local(t: Thing, window: tuple[slice, slice]) -> tuple[F32, F32]:
    """Coordinates of the window's pixels in the thing's own frame (about -1 to 1)."""
    y, x = np.mgrid[window].astype(np.float32)
    u, v = (x - t.x) / (t.radius * t.stretch[0]), (y - t.y) / (t.radius * t.stretch[1])
    c, s = np.float32(np.cos(t.rotation)), np.float32(np.sin(t.rotation))
    return u * c + v * s, -u * s + v * c


def _shade(t: Thing, window: tuple[slice, slice]) -> tuple[F32, F32]:
    """Brightness factor and added highlight [h,w] of a thing's surface."""
    u, v = _local(t, window)
    direction, strength = t.light
    lit = np.cos(direction) * u + np.sin(direction) * v
    name = SHAPES[t.shape]
    flat = 1 + strength * lit
    if t.look == "flat":
        return flat, np.zeros_like(flat)
    if name == "cup":
        body = 1 - 0.35 * strength - 0.45 * abs(strength) * np.clip(u * np.sign(strength) + 0.35, -1, 1) ** 2
        if t.ridges:
            body = body * (1 - 0.16 * (np.sin(np.pi * t.ridges * (v + 1)) > 0.8))
        cap = (u / 0.6) ** 2 + ((v + 1) / 0.16) ** 2 < 1
        lip = np.abs(v - 0.95 - 0.18 * np.sqrt(np.clip(1 - (u / 0.82) ** 2, 0, 1))) < 0.06
        shade = np.where(cap, 1.05 if t.rim else 0.6, body)
        return shade, np.where(lip & t.rim, 90.0, 0.0).astype(np.float32)
    if name == "square" and t.look == "solid":  # a block: one face bright, a strip of each neighbouring face darker
        edge = 0.45 if t.rim else 0.3
        face = np.where(v > 0.88 - edge, 0.62, np.where(u > 0.88 - edge * 0.8, 0.8, 1.0)).astype(np.float32)
        return face * flat, np.zeros_like(flat)
    depth = np.sqrt(np.clip(1.05 - u * u - v * v, 0.0, 1.05))
    lambert = 0.55 + 0.5 * np.clip(0.75 * depth + 0.6 * lit, 0, 1)
    spot = np.exp(-(((u - 0.4 * np.cos(direction)) ** 2 + (v - 0.4 * np.sin(direction)) ** 2) / 0.05))
    return lambert, (110 * spot * (abs(strength) > 0.15)).astype(np.float32)


def _print_mark(canvas: F32, t: Thing, window: tuple[slice, slice]) -> F32:
    """A pale patch with a letter, as on a toy block, mixed into the surface colours [h,w,3]."""
    rng = np.random.default_rng(t.mark)
    stamp = np.zeros(canvas.shape[:2], np.uint8)
    origin = (int(t.x - window[1].start - 0.45 * t.radius), int(t.y - window[0].start + 0.45 * t.radius))
    letter = chr(65 + int(rng.integers(26)))
    cv2.putText(
        stamp, letter, origin, cv2.FONT_HERSHEY_SIMPLEX, t.radius / 22, 255, max(1, int(t.radius / 8)), cv2.LINE_AA
    )
    pale = np.float32(rng.uniform(200, 245))
    a = stamp[..., None].astype(np.float32) / 255
    if rng.random() < 0.5:  # coloured letter on a pale face
        u, v = _local(t, window)
        patch = ((np.abs(u) < 0.62) & (np.abs(v) < 0.62))[..., None]
        return np.where(patch, pale * (1 - a) + canvas * a, canvas)
    return canvas * (1 - a) + pale * a


def _draw_shadow(image: F32, mask: U8, t: Thing) -> None:
    """Darken what lies under a soft, shifted copy of the mask."""
    reach = max(2, int(0.35 * t.radius))
    dx, dy = int(-reach * np.cos(t.light[0])), int(-reach * np.sin(t.light[0]))
    x, y, w, h = cv2.boundingRect(mask)
    pad = 2 * reach
    x0, y0 = max(x - pad, 0), max(y - pad, 0)
    window = np.s_[y0 : y + h + pad, x0 : x + w + pad]
    shift = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    small = np.ascontiguousarray(mask[window])
    soft = cv2.blur(cv2.warpAffine(small, shift, (small.shape[1], small.shape[0])), (reach + 1, reach + 1))
    image[window] *= 1 - 0.45 * soft[..., None].astype(np.float32) / 255


def draw(image: F32, ids: U8, t: Thing, index: int) -> None:
    """Paint one thing over `image` [S,S,3] and write `index` into `ids` where it covers at least half a pixel."""
    mask = coverage(t, ids.shape[0])
    kernel = _shutter(t.smear)
    if kernel is not None:
        mask = cv2.filter2D(mask, -1, kernel, borderType=cv2.BORDER_CONSTANT)
    x, y, w, h = cv2.boundingRect(mask)
    if w == 0:
        return
    if t.look != "flat":
        _draw_shadow(image, mask, t)
    window = (slice(y, y + h), slice(x, x + w))
    shade, glow = _shade(t, window)
    surface = np.array(t.rgb, np.float32) * shade[..., None] + glow[..., None]
    if t.rim and t.look == "flat":
        inner = cv2.erode(mask[window], np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
        surface *= 0.6 + 0.4 * inner[..., None].astype(np.float32) / 255
    if t.mark and t.radius > 7:
        surface = _print_mark(surface, t, window)
    if kernel is not None:
        surface = cv2.filter2D(surface, -1, kernel)
    a = mask[window][..., None].astype(np.float32) / 255
    image[window] = image[window] * (1 - a) + np.clip(surface, 0, 255) * a
    ids[window][mask[window] > 127] = index


def _shutter(smear: tuple[float, float]) -> F32 | None:
    """The kernel of a straight motion, or `None` where it is under a pixel."""
    reach = int(np.ceil(max(abs(v) for v in smear) / 2))
    if reach < 1:
        return None
    kernel = np.zeros((2 * reach + 1,) * 2, np.float32)
    ends = [tuple(int(16 * (reach + side * v / 2)) for v in smear) for side in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1, cv2.LINE_AA, 4)
    return np.asarray(kernel / kernel.sum())


# ------------------------------------------------------------------------------------------------ backgrounds
def rgb_of(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """OpenCV's HSV (half degrees, 0-255, 0-255) as RGB 0-255."""
    r, g, b = cv2.cvtColor(np.array([[[hue, saturation, value]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0]
    return float(r), float(g), float(b)


def _muted(rng: Rng, low: float = 25, high: float = 200) -> F32:
    """A colour that has no name here: grey, brown, olive, skin, dull blue."""
    hue, value = float(rng.uniform(0, 180)), float(rng.uniform(low, high))
    saturation = float(rng.uniform(0, 70))
    if rng.random() < 0.35:  # wood and skin
        hue, saturation = float(rng.uniform(5, 20)), float(rng.uniform(50, 150))
        value = min(value, 185.0) if saturation > 110 else value
    return np.array(rgb_of(hue, saturation, value), np.float32)


def _noise(rng: Rng, size: int, cells: int, amplitude: float) -> F32:
    grid = amplitude * rng.standard_normal((cells, cells, 1)) + 0.35 * amplitude * rng.standard_normal(
        (cells, cells, 3)
    )
    return np.asarray(cv2.resize(grid.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC))


def _texture(rng: Rng, size: int) -> F32:
    """One material [S,S,3]: plaster, wood grain, cloth, tiles, grid paper or foliage."""
    base: F32 = np.broadcast_to(_muted(rng), (size, size, 3)).astype(np.float32)
    kind = rng.choice(["plaster", "wood", "cloth", "tiles", "lines", "foliage"], p=[0.3, 0.2, 0.12, 0.12, 0.12, 0.14])
    if kind == "plaster":
        return base + _noise(rng, size, int(rng.choice([3, 6, 12, 24])), float(rng.uniform(3, 28)))
    if kind == "wood":
        grain = rng.standard_normal((int(rng.integers(20, 80)), 3, 1)).astype(np.float32) * rng.uniform(5, 20)
        rows = cv2.resize(grain, (size, size), interpolation=cv2.INTER_LINEAR)[..., None]
        return np.asarray(base + (rows if rng.random() < 0.5 else rows.transpose(1, 0, 2)))
    y, x = np.mgrid[:size, :size].astype(np.float32)
    if kind == "cloth":
        a, f = rng.uniform(0, np.pi), rng.uniform(0.15, 1.2)
        weave = rng.uniform(4, 22) * np.sin(f * (np.cos(a) * x + np.sin(a) * y))
        return np.asarray(base + weave[..., None].astype(np.float32))
    if kind == "foliage":
        fine, coarse = _noise(rng, size, int(rng.integers(20, 50)), 28), _noise(rng, size, 7, 20)
        return base * 0.6 + np.array([-5, 8, -8], np.float32) + fine + coarse
    step = float(rng.uniform(6, 40))
    if kind == "tiles":
        board = ((x // step + y // step) % 2).astype(np.float32)[..., None]
        return np.asarray(base + (board - 0.5) * float(rng.uniform(10, 60)))
    lines = ((x % step < 1.0) | (y % step < 1.0)).astype(np.float32)[..., None]
    return np.asarray(base + lines * float(rng.choice([-1, 1])) * float(rng.uniform(20, 110)))


def _clutter(rng: Rng, image: F32, things: int) -> None:
    """Furniture, papers, hands: muted polygons and rounded strokes that have no name."""
    size = image.shape[0]
    for _ in range(things):
        colour = tuple(float(v) for v in _muted(rng))
        cx, cy = rng.uniform(0, size, 2)
        if rng.random() < 0.5:
            points = _ngon(int(rng.integers(3, 8)), float(rng.uniform(0, 6.3))) * rng.uniform(0.05, 0.45) * size
            points = points * rng.uniform(0.4, 1.6, 2) + np.array([cx, cy])
            cv2.fillPoly(image, [np.round(points * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)
        else:
            end = (int(cx + rng.uniform(-0.5, 0.5) * size), int(cy + rng.uniform(-0.5, 0.5) * size))
            cv2.line(image, (int(cx), int(cy)), end, colour, int(rng.integers(2, size // 7)), cv2.LINE_AA)


def background(rng: Rng, size: int = SIZE) -> F32:
    """A photograph-like background [S,S,3]: one to three materials, clutter, uneven light; 0-235."""
    image = _texture(rng, size)
    if rng.random() < 0.5:  # wall and table
        other, cut = _texture(rng, size), int(rng.uniform(0.2, 0.8) * size)
        if rng.random() < 0.7:
            image[cut:] = other[cut:]
        else:
            image[:, cut:] = other[:, cut:]
    if rng.random() < 0.55:
        image = np.ascontiguousarray(image)
        _clutter(rng, image, int(rng.integers(1, 9)))
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    a = rng.uniform(0, 2 * np.pi)
    image = image * (1 + rng.uniform(0, 0.7) * (np.cos(a) * x + np.sin(a) * y))[..., None].astype(np.float32)
    if rng.random() < 0.1:  # a white table
        image = image * 0.3 + 165
    return np.asarray(np.clip(image, 0, 235))


# ------------------------------------------------------------------------------------------------ composing
def sample_rgb(rng: Rng, colour: int) -> tuple[float, float, float]:
    """A colour that goes by the name COLOURS[colour]."""
    (h0, h1), (s0, s1), (v0, v1) = _PALETTE_HSV[colour]
    return rgb_of(int(rng.integers(h0, h1 + 1) % 180), int(rng.integers(s0, s1 + 1)), int(rng.integers(v0, v1 + 1)))


def _sample_extent(rng: Rng) -> float:
    """Diameter over frame width: mostly 9-38 %, with tails to 3 % and 60 %."""
    if rng.random() < 0.2:
        return float(np.exp(rng.uniform(np.log(0.03), np.log(0.6))))
    return float(0.09 + 0.29 * rng.beta(1.2, 1.8))


def sample_thing(rng: Rng, colour: int, shape: int, squash: tuple[float, float], size: int = SIZE) -> Thing:
    """One thing of this colour and shape with everything else random; `squash` is the frame's aspect distortion."""
    name = SHAPES[shape]
    look = str(rng.choice(["flat", "shaded", "solid"], p=[0.45, 0.2, 0.35]))
    if name == "cup":
        look = "solid"
    upright = name == "cup" or (name in ("heart", "star", "triangle", "square") and rng.random() < 0.5)
    rotation = float(rng.normal(0, 0.12)) if upright else float(rng.uniform(0, 2 * np.pi))
    if name == "cup" and rng.random() < 0.35:
        rotation += np.pi
    own = rng.uniform(0.85, 1.18, 2) * (np.array([0.85, 1.0]) if name == "cup" else 1.0)
    radius = _sample_extent(rng) * size / 2
    x, y = (
        rng.uniform(-0.25 * radius, size + 0.25 * radius, 2)
        if rng.random() < 0.25
        else rng.uniform(radius, size - radius, 2)
    )
    return Thing(
        colour=colour,
        shape=shape,
        radius=radius,
        x=float(x),
        y=float(y),
        rotation=rotation,
        stretch=(float(own[0] * squash[0]), float(own[1] * squash[1])),
        rgb=sample_rgb(rng, colour),
        look=look,
        light=(float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(-0.35, 0.35))),
        rim=bool(rng.random() < 0.35),
        hole=float(rng.uniform(0.45, 0.68)),
        mark=int(rng.integers(1, 1 << 30)) if name == "square" and rng.random() < 0.3 else 0,
    )


def sample_squash(rng: Rng) -> tuple[float, float]:
    """How a frame's own aspect ratio distorts things in the square input: 16:9 video narrows them to 9/16."""
    wide = float(rng.choice([1.0, 0.75, 0.5625, 1.33], p=[0.45, 0.2, 0.28, 0.07]))
    return (wide, 1.0) if wide <= 1 else (1.0, 1 / wide)


def _random_pair(rng: Rng, colours: Sequence[int], shapes: Sequence[int], held_out: bool) -> tuple[int, int]:
    while True:
        pair = int(rng.choice(np.asarray(colours))), int(rng.choice(np.asarray(shapes)))
        if held_out or pair not in HELD_OUT:
            return pair


def sample_pairs(rng: Rng, held_out: bool, rivals: bool) -> list[tuple[int, int]]:
    """Colours and shapes of a scene; with `rivals` pairs[0] has a same-colour and a same-shape rival, placed first."""
    if not rivals:
        colours = rng.choice(N_COLOURS, int(rng.integers(2, 5)), replace=False)
        shapes = rng.choice(N_SHAPES, int(rng.integers(2, 5)), replace=False)
        try_pairs = (
            [
                _random_pair(rng, list(colours), list(range(N_SHAPES)) if i > 8 else list(shapes), held_out)
                for i in range(int(rng.integers(0, 9)))
            ]
            if _has_allowed(colours, shapes, held_out)
            else []
        )
        return try_pairs
    if held_out:
        choices = sorted(HELD_OUT)
        c, s = choices[int(rng.integers(len(choices)))]
    else:
        c, s = _random_pair(rng, range(N_COLOURS), range(N_SHAPES), False)
    same_colour = _random_pair(rng, [c], [v for v in range(N_SHAPES) if v != s], held_out)
    same_shape = _random_pair(rng, [v for v in range(N_COLOURS) if v != c], [s], held_out)
    extra_colour, extra_shape = int(rng.integers(N_COLOURS)), int(rng.integers(N_SHAPES))
    more = [
        _pair_or(rng, [c, same_shape[0], extra_colour], [s, same_colour[1], extra_shape], held_out)
        for _ in range(int(rng.integers(0, 4)))
    ]
    twin = [(c, s)] if rng.random() < 0.35 else []
    return [(c, s), same_colour, same_shape, *twin, *more]


def _has_allowed(colours: NDArray[Any], shapes: NDArray[Any], held_out: bool) -> bool:
    return held_out or any((int(c), int(s)) not in HELD_OUT for c in colours for s in shapes)


def _pair_or(rng: Rng, colours: list[int], shapes: list[int], held_out: bool) -> tuple[int, int]:
    return _random_pair(rng, colours, shapes, held_out)


def place_things(rng: Rng, pairs: Sequence[tuple[int, int]], size: int = SIZE) -> list[Thing]:
    """Things for `pairs`, none buried by a later one: each keeps at least 45 % of its own area in view."""
    squash = sample_squash(rng)
    things: list[Thing] = []
    kept: list[tuple[NDArray[Any], int]] = []
    for colour, shape in pairs:
        for attempt in range(8):
            t = sample_thing(rng, colour, shape, squash, size)
            if attempt > 3:
                t = replace(t, radius=min(t.radius, 0.11 * size))
            mask = coverage(t, size) > 127
            area = int(mask.sum())
            if area < MIN_PIXELS or area < 0.4 * 2.2 * t.radius**2 * t.stretch[0] * t.stretch[1] * (
                0.6 if shape == 5 else 1
            ):
                continue
            if all((view & ~mask).sum() > 0.45 * whole for view, whole in kept):
                kept = [(view & ~mask, whole) for view, whole in kept] + [(mask, area)]
                things.append(t)
                break
    return things


_NOISE_BANK: dict[int, F32] = {}


def camera(rng: Rng, image: F32) -> U8:
    """What a camera and an encoder do to a picture: light, blur, noise, JPEG."""
    size = image.shape[0]
    if rng.random() < 0.5:
        image = image * (rng.uniform(0.72, 1.15) * rng.uniform(0.94, 1.06, 3)).astype(np.float32)
    u = rng.random()
    if u < 0.25:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.3)))
    elif u < 0.33:
        k = int(rng.integers(2, 6))
        image = cv2.blur(image, (k, 1) if rng.random() < 0.6 else (1, k))
    if size not in _NOISE_BANK:  # a random crop of a fixed bank is far cheaper than fresh normals
        _NOISE_BANK[size] = np.random.default_rng(0).standard_normal((size + 97, size + 97, 3)).astype(np.float32)
    dy, dx = rng.integers(0, 97, 2)
    image = image + np.float32(rng.uniform(0, 8)) * _NOISE_BANK[size][dy : dy + size, dx : dx + size]
    out = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() < 0.35:
        _, code = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 92))])
        return np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))
    return out


def finish(things: Sequence[Thing], image: U8, ids: U8) -> Scene:
    """Drop things that are hardly visible, renumber the rest and box them."""
    size = ids.shape[0]
    keep = [i for i in range(len(things)) if int((ids == i + 1).sum()) >= MIN_PIXELS]
    table = np.zeros(len(things) + 1, np.uint8)
    table[[i + 1 for i in keep]] = np.arange(1, len(keep) + 1)
    ids = table[ids]
    boxes = np.zeros((len(keep), 4), np.float32)
    for j in range(len(keep)):
        x, y, w, h = cv2.boundingRect((ids == j + 1).view(np.uint8))
        boxes[j] = np.array([x, y, x + w, y + h]) / size
    return Scene(image, ids, tuple(things[i] for i in keep), boxes)


def sample_scene(rng: Rng, *, held_out: bool = False, rivals: bool | None = None, size: int = SIZE) -> Scene:
    """A random picture; `rivals` (default: 70 % of them) puts same-colour and same-shape rivals beside things[0]."""
    with_rivals = bool(rng.random() < 0.7) if rivals is None else rivals
    while True:
        pairs = sample_pairs(rng, held_out, with_rivals)
        things = place_things(rng, pairs, size)
        if with_rivals and [(t.colour, t.shape) for t in things[:3]] != pairs[:3]:
            continue
        image, ids = background(rng, size), np.zeros((size, size), np.uint8)
        for i, t in enumerate(things):
            draw(image, ids, t, i + 1)
        scene = finish(things, camera(rng, image), ids)
        if not with_rivals or [(t.colour, t.shape) for t in scene.things[:3]] == pairs[:3]:
            return scene


# ------------------------------------------------------------------------------------------------ questions
def sized(rng: Rng, scene: Scene, query: Query) -> Query:
    """`query` with a size word where one is true of some match and doubtful for none; else unchanged."""
    extents = [scene.things[i].extent() for i in scene.find(query)]
    options = [s for s in (-1, 1) if any(replace(query, size=s).matches(query.colour, query.shape, e) for e in extents)]
    doubtful = any(0.13 <= e <= 0.25 for e in extents)
    return query if doubtful or not options else replace(query, size=int(rng.choice(options)))


def absent_queries(scene: Scene, held_out: bool) -> dict[str, list[Query]]:
    """Queries for what is not in the scene, by kind of near miss."""
    pairs = {(t.colour, t.shape) for t in scene.things}
    colours, shapes = {c for c, _ in pairs}, {s for _, s in pairs}
    missing = [(c, s) for c in range(N_COLOURS) for s in range(N_SHAPES) if (c, s) not in pairs]
    missing = [p for p in missing if (p in HELD_OUT) == held_out]
    near = [Query(c, s) for c, s in missing if c in colours and s in shapes]
    return {
        "right colour, wrong shape": list(near) + [Query(c, s) for c, s in missing if c in colours and s not in shapes],
        "right shape, wrong colour": [Query(c, s) for c, s in missing if s in shapes and c not in colours] + near,
        "absent colour": [Query(colour=c) for c in range(N_COLOURS) if c not in colours]
        + [Query(c, s) for c, s in missing if c not in colours],
        "absent shape": [Query(shape=s) for s in range(N_SHAPES) if s not in shapes],
    }


_ABSENT_WEIGHTS = {
    "right colour, wrong shape": 0.42,
    "right shape, wrong colour": 0.2,
    "absent colour": 0.1,
    "absent shape": 0.16,
    "unknown noun": 0.12,
}


def sample_absent(rng: Rng, scene: Scene) -> Query:
    """A query for nothing in the scene, mostly a near miss."""
    options = absent_queries(scene, held_out=False)
    kind = str(rng.choice(list(_ABSENT_WEIGHTS), p=list(_ABSENT_WEIGHTS.values())))
    if options.get(kind):
        return options[kind][int(rng.integers(len(options[kind])))]
    return Query(colour=int(rng.integers(-1, N_COLOURS)), unknown=True)


def sample_present(rng: Rng, scene: Scene, first: bool) -> Query:
    """A query for something in the scene: the full pair of things[0] when `first`, else any wording."""
    t = scene.things[0 if first else int(rng.integers(len(scene.things)))]
    forms = [Query(t.colour, t.shape), Query(shape=t.shape), Query(colour=t.colour), Query()]
    query = forms[0] if first else forms[int(rng.choice(4, p=[0.3, 0.33, 0.27, 0.1]))]
    return sized(rng, scene, query) if rng.random() < 0.2 else query


def sample_queries(rng: Rng, scene: Scene) -> list[Query]:
    """Three queries for one scene: a present pair, another present one, and one for what is absent."""
    if not scene.things:
        return [sample_absent(rng, scene) for _ in range(3)]
    return [sample_present(rng, scene, first=True), sample_present(rng, scene, first=False), sample_absent(rng, scene)]


def soft_masks(scene: Scene, resolution: int) -> F32:
    """Area-averaged masks [n,r,r] of a scene's things, 0-1."""
    return (
        np.stack(
            [
                cv2.resize(
                    (scene.ids == i + 1).astype(np.float32), (resolution, resolution), interpolation=cv2.INTER_AREA
                )
                for i in range(len(scene.things))
            ]
        )
        if scene.things
        else np.zeros((0, resolution, resolution), np.float32)
    )


def main() -> None:
    """Draw a contact sheet of scenes with a query each."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", default="preview.png")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    tiles = []
    for _ in range(40):
        scene = sample_scene(rng)
        tile = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
        query = sample_queries(rng, scene)[0]
        cv2.putText(tile, phrase(rng, query), (3, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (255, 255, 255), 1, cv2.LINE_AA)
        tiles.append(tile)
    cv2.imwrite(args.out, np.vstack([np.hstack(tiles[i : i + 8]) for i in range(0, 40, 8)]))


if __name__ == "__main__":
    main()
