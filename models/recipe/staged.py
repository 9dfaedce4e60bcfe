"""Staged training pictures: what footage of people with things shows and scattered shapes do not.

Line-ups of identical things on a table, boards of small printed blocks, a person behind them in knitted clothes, hands
and arms that hold, pass and hide things, and things smeared by their own motion. No evaluation picture comes from here.
    python -m models.recipe.staged --out preview.png
"""

import argparse
from dataclasses import dataclass, replace

import cv2
import numpy as np

from models.recipe.scenes import (
    F32,
    SIZE,
    U8,
    Rng,
    Scene,
    Thing,
    background,
    camera,
    coverage,
    draw,
    finish,
    rgb_of,
    sample_queries,
    sample_squash,
    sample_thing,
)
from models.recipe.vocabulary import HELD_OUT, N_COLOURS, N_SHAPES, SHAPES, phrase

_HIDDEN_AT_MOST = 0.65
"""Share of a thing that a hand may cover; what is left must still be nameable."""
_CLOTHES_HUES = (17, 19, 37, 39, 80, 99, 126, 158, 165, 170)
"""Hues (OpenCV half degrees) between the named colours: nobody asks for the jumper."""


# ------------------------------------------------------------------------------------------------ people
@dataclass(frozen=True)
class Limb:
    """A hand with its arm: outlines [k,2] around (0, 0), the middle of the grip, in pixels; skin or sleeve colours."""

    outlines: tuple[F32, ...]
    colours: tuple[tuple[float, float, float], ...]
    smear: tuple[float, float] = (0.0, 0.0)


def _skin(rng: Rng) -> tuple[float, float, float]:
    return rgb_of(int(rng.integers(4, 19)), int(rng.integers(40, 150)), int(rng.integers(80, 250)))


def _capsule(start: F32, end: F32, width: float, end_width: float) -> F32:
    """Outline of a tapered stroke with round ends."""
    along = end - start
    turn = float(np.arctan2(along[1], along[0]))
    back, front = (np.linspace(a, a + np.pi, 9) + turn for a in (np.pi / 2, -np.pi / 2))
    return np.concatenate(
        [
            start + width / 2 * np.stack([np.cos(back), np.sin(back)], 1),
            end + end_width / 2 * np.stack([np.cos(front), np.sin(front)], 1),
        ]
    )


def sample_limb(rng: Rng, palm: float, squash: tuple[float, float]) -> Limb:
    """A hand of `palm` pixels across that reaches in from anywhere, mostly from above."""
    skin = np.array(_skin(rng))
    towards = float(rng.normal(-np.pi / 2, 0.7)) if rng.random() < 0.75 else float(rng.uniform(0, 2 * np.pi))
    axis, side = (np.array([np.cos(a), np.sin(a)]) for a in (towards, towards + np.pi / 2))
    wrist = 1.15 * palm * axis
    bend = axis + side * rng.normal(0, 0.5)
    elbow = wrist + bend * palm * float(rng.uniform(2.5, 5))
    parts = [_capsule(elbow, wrist, 0.95 * palm, 0.62 * palm)]
    colours = [skin if rng.random() < 0.65 else np.array(_clothes(rng))]
    parts.append(_capsule(wrist, 0.25 * palm * axis, 0.62 * palm, float(rng.uniform(0.7, 0.95)) * palm))
    colours.append(skin * 0.97)
    spread, length = float(rng.uniform(0.1, 0.3)), float(rng.uniform(0.45, 1.0))
    for k in range(4):
        root = 0.2 * palm * axis + side * palm * (k - 1.5) * 0.22
        tip = root - axis * palm * length * (1 - 0.08 * abs(k - 1.5)) + side * palm * (k - 1.5) * spread
        parts.append(_capsule(root, tip, 0.24 * palm, 0.17 * palm))
        colours.append(skin * (0.86 + 0.05 * k))
    if rng.random() < 0.7:
        out = float(rng.choice([-1, 1]))
        root = 0.55 * palm * axis + side * 0.35 * palm * out
        parts.append(_capsule(root, root + side * 0.4 * palm * out - axis * 0.5 * palm, 0.28 * palm, 0.2 * palm))
        colours.append(skin * 0.92)
    fit = np.array(squash)
    return Limb(tuple(p * fit for p in parts), tuple((float(c[0]), float(c[1]), float(c[2])) for c in colours))


def draw_limb(image: F32, ids: U8, limb: Limb, x: float, y: float, shrink: float = 1.0) -> U8:
    """Paint a hand over the picture and its ids -> its coverage [S,S], 0-255."""
    size = ids.shape[0]
    total = np.zeros((size, size), np.uint8)
    layer = image.copy()
    for outline, colour in zip(limb.outlines, limb.colours, strict=True):
        points = [np.round((outline * shrink + np.array([x, y])) * 16).astype(np.int32)]
        dark = tuple(0.72 * c for c in colour)
        cv2.fillPoly(layer, points, colour, cv2.LINE_AA, 4)
        cv2.polylines(layer, points, True, dark, 1, cv2.LINE_AA, 4)
        cv2.fillPoly(total, points, 255, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(total, (0, 0), 1.0 + max(abs(v) for v in limb.smear) / 3)
    rounded = 0.78 + 0.3 * cv2.GaussianBlur(total, (0, 0), 4.0).astype(np.float32)[..., None] / 255
    a = soft[..., None].astype(np.float32) / 255
    image[:] = image * (1 - a) + np.clip(layer * rounded, 0, 255) * a
    ids[soft > 127] = 0
    return np.asarray(soft)


def _clothes(rng: Rng) -> tuple[float, float, float]:
    hue, saturation = int(rng.choice(_CLOTHES_HUES)), int(rng.integers(60, 235))
    if rng.random() < 0.4:  # black, grey, white
        saturation = int(rng.integers(0, 30))
    return rgb_of(hue, saturation, int(rng.integers(25, 205)))


def _draw_torso(rng: Rng, image: F32, bottom: int) -> None:
    """Somebody behind the table: a knitted trunk and two arms down to it."""
    size = image.shape[0]
    x, half = float(rng.uniform(0.25, 0.75)) * size, float(rng.uniform(0.13, 0.26)) * size
    body = np.array([[-0.85, 0], [0.85, 0], [1, 1], [-1, 1]]) * np.array([half, bottom]) + np.array([x, 0])
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(body * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    yy = np.arange(size, dtype=np.float32)[:, None, None]
    xx = np.arange(size, dtype=np.float32)[None, :, None]
    rows = np.sin(yy * float(rng.uniform(0.4, 1.6))) + 0.4 * np.sin(xx * float(rng.uniform(0.6, 2.2)))
    round_ = np.sqrt(np.clip(1 - ((xx - x) / (1.25 * half)) ** 2, 0.2, 1))
    cloth = (np.array(_clothes(rng), np.float32) + float(rng.uniform(0, 22)) * rows) * round_
    a = mask[..., None].astype(np.float32) / 255
    image[:] = image * (1 - a) + np.clip(cloth, 0, 235) * a
    skin = np.array(_skin(rng))
    for out in (-1, 1):
        shoulder = np.array([x + out * 0.95 * half, float(rng.uniform(-0.1, 0.15)) * size])
        hand = np.array([x + out * float(rng.uniform(0.7, 1.7)) * half, bottom + float(rng.uniform(-0.05, 0.1)) * size])
        arm = _capsule(shoulder, hand, 0.4 * half, 0.26 * half)
        colour = tuple(float(c) for c in skin * rng.uniform(0.85, 1.05))
        cv2.fillPoly(image, [np.round(arm * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)


def stage(rng: Rng, size: int = SIZE) -> F32:
    """A background [S,S,3] with, mostly, a plain table in front and often somebody behind it."""
    image = np.ascontiguousarray(background(rng, size))
    edge = int(rng.uniform(0.3, 0.65) * size)
    if rng.random() < 0.45:
        _draw_torso(rng, image, edge + int(0.05 * size))
    if rng.random() < 0.6:
        grey = float(rng.uniform(20, 60)) if rng.random() < 0.3 else float(rng.uniform(120, 232))
        lean = float(rng.uniform(0, 0.12)) * size
        table = np.array([[lean, edge], [size - lean, edge], [size + 20, size], [-20, size]])
        tone = tuple(float(np.clip(grey + rng.uniform(-9, 9), 0, 233)) for _ in range(3))
        cv2.fillPoly(image, [np.round(table * 16).astype(np.int32)], tone, cv2.LINE_AA, 4)
    return image


# ------------------------------------------------------------------------------------------------ things
def _pair(rng: Rng) -> tuple[int, int]:
    while True:
        shape = SHAPES.index("cup") if rng.random() < 0.3 else int(rng.integers(N_SHAPES))
        pair = int(rng.integers(N_COLOURS)), shape
        if pair not in HELD_OUT:
            return pair


def line_up(rng: Rng, size: int = SIZE) -> list[Thing]:
    """Two to five things of one kind, alike in everything but small turns, side by side or one behind another."""
    squash, (colour, shape) = sample_squash(rng), _pair(rng)
    model = sample_thing(rng, colour, shape, squash, size)
    count = int(rng.integers(2, 6))
    radius = float(rng.uniform(0.06, min(0.19, 0.42 / count + 0.06))) * size
    ridges = int(rng.integers(3, 9)) if rng.random() < 0.5 else 0
    wide = max(0.5, 0.9 * model.stretch[0]) * radius
    pitch = float(rng.uniform(1.5, 3.6)) * wide
    left = size / 2 + float(rng.normal(0, 0.12)) * size - pitch * (count - 1) / 2
    level = float(rng.uniform(0.4, 0.75)) * size
    things = []
    for k in range(count):
        x, y = left + k * pitch + float(rng.normal(0, 0.15)) * pitch, level + float(rng.normal(0, 0.22)) * radius
        turn = model.rotation + float(rng.normal(0, 0.06))
        near = radius * (1 + 0.25 * (y - level) / size) * float(rng.uniform(0.96, 1.04))
        things.append(replace(model, x=x, y=y, rotation=turn, radius=near, ridges=ridges))
    if rng.random() < 0.3:  # one is being moved
        k, far = int(rng.integers(count)), rng.normal(0, 0.2, 2) * size
        moved = np.clip(np.array([things[k].x, things[k].y]) + far, 0.1 * size, 0.9 * size)
        things[k] = replace(things[k], x=float(moved[0]), y=float(moved[1]), rotation=float(rng.normal(0, 0.3)))
    return sorted(things, key=lambda t: t.y)


def board(rng: Rng, size: int = SIZE) -> list[Thing]:
    """Six to twelve small blocks of three or four colours, turned anyhow, some touching, most with a letter."""
    squash, square = sample_squash(rng), SHAPES.index("square")
    allowed = [int(c) for c in rng.permutation(N_COLOURS) if (int(c), square) not in HELD_OUT]
    colours = allowed[: int(rng.integers(3, 5))]
    radius = float(rng.uniform(0.03, 0.06)) * size
    things: list[Thing] = []
    for _ in range(int(rng.integers(6, 13))):
        t = sample_thing(rng, int(rng.choice(colours)), square, squash, size)
        mark = int(rng.integers(1, 1 << 30)) if rng.random() < 0.8 else 0
        look = "solid" if rng.random() < 0.7 else "flat"
        x, y = rng.uniform(0.06, 0.94, 2) * size
        if things and rng.random() < 0.5:  # beside another
            x, y = np.array([things[-1].x, things[-1].y]) + rng.normal(0, 1, 2) * 2.4 * radius
        if all(np.hypot(x - o.x, y - o.y) > 1.5 * radius for o in things) and min(x, y) > 0 and max(x, y) < size:
            things.append(replace(t, x=float(x), y=float(y), radius=radius, mark=mark, look=look))
    return things


def _company(rng: Rng, things: list[Thing], size: int) -> list[Thing]:
    """Up to two other things beside a line-up, one mostly of the same colour or shape."""
    extra = []
    for _ in range(int(rng.integers(0, 3))):
        colour, shape = _pair(rng)
        if rng.random() < 0.5:
            colour = things[0].colour
        if (colour, shape) in HELD_OUT:
            continue
        t = sample_thing(rng, colour, shape, sample_squash(rng), size)
        extra.append(replace(t, radius=min(t.radius, 0.12 * size)))
    return extra + things


def _hold(rng: Rng, image: F32, ids: U8, thing: Thing, seen: int) -> None:
    """A hand on a thing, from a side or from above; none where it would hide too much of it."""
    palm = float(rng.uniform(0.7, 1.5)) * max(thing.radius, float(rng.uniform(0.05, 0.11)) * ids.shape[0])
    limb = sample_limb(rng, palm, thing.stretch)
    limb = replace(limb, smear=thing.smear)
    where = float(rng.uniform(0, 2 * np.pi))
    reach = float(rng.uniform(0.4, 1.3)) * thing.radius
    x = thing.x + reach * np.cos(where) * thing.stretch[0]
    y = thing.y - abs(reach * np.sin(where)) * thing.stretch[1]
    trial_image, trial_ids = image.copy(), ids.copy()
    draw_limb(trial_image, trial_ids, limb, float(x), float(y))
    before, after = (np.bincount(v.ravel(), minlength=seen + 1)[1:] for v in (ids, trial_ids))
    if ((before - after) <= _HIDDEN_AT_MOST * before).all():
        image[:], ids[:] = trial_image, trial_ids


def staged_scene(rng: Rng, size: int = SIZE) -> Scene:
    """A line-up or a board with what people do to it."""
    while True:
        is_board = rng.random() < 0.22
        things = board(rng, size) if is_board else _company(rng, line_up(rng, size), size)
        if rng.random() < 0.35:
            k, reach = int(rng.integers(len(things))), float(rng.uniform(3, 14)) * size / SIZE
            a = float(rng.uniform(0, np.pi))
            things[k] = replace(things[k], smear=(float(reach * np.cos(a)), float(reach * np.sin(a))))
        image = np.ascontiguousarray(background(rng, size)) if is_board else stage(rng, size)
        ids, whole = np.zeros((size, size), np.uint8), []
        for i, t in enumerate(things):
            draw(image, ids, t, i + 1)
            whole.append(int((coverage(t, size) > 127).sum()))
        if rng.random() < 0.65:
            for _ in range(int(rng.integers(1, 3))):
                _hold(rng, image, ids, things[int(rng.integers(len(things)))], len(things))
        left = np.bincount(ids.ravel(), minlength=len(things) + 1)[1:]
        if all(n > 0.2 * w for n, w in zip(left, whole, strict=True)):
            return finish(things, camera(rng, image), ids)


def main() -> None:
    """Draw a contact sheet of staged scenes with a query each."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", default="preview.png")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, tiles = np.random.default_rng(args.seed), []
    for _ in range(40):
        scene = staged_scene(rng)
        tile = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
        for i in range(len(scene.things)):
            edge, _ = cv2.findContours((scene.ids == i + 1).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(tile, edge, -1, (255, 0, 255), 1)
        text = phrase(rng, sample_queries(rng, scene)[0])
        cv2.putText(tile, text, (3, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (255, 255, 255), 1, cv2.LINE_AA)
        tiles.append(tile)
    cv2.imwrite(args.out, np.vstack([np.hstack(tiles[i : i + 8]) for i in range(0, 40, 8)]))


if __name__ == "__main__":
    main()
