"""Procedural clips: moving, turning, crossing, hiding and returning things, with the identity of every pixel known.

Training clips are short and wild; evaluation clips are 60 frames long, scripted by category and encoded to mp4.
    python -m models.recipe.clips --out clips/ --count 50
    python -m models.recipe.clips --out models/tiny --demo
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from models.recipe.scenes import (
    F32,
    MIN_PIXELS,
    SIZE,
    U8,
    Rng,
    Thing,
    background,
    coverage,
    draw,
    sample_pairs,
    sample_squash,
    sample_thing,
)
from models.recipe.staged import Limb, draw_limb, line_up, sample_limb, stage
from models.recipe.vocabulary import COLOURS, HELD_OUT, N_COLOURS, N_SHAPES, SHAPES

CATEGORIES = ("crossing", "occlusion", "look-alike")
WIDTH, HEIGHT = 480, 270  # evaluation clips, pixels
FPS = 25
Path2 = Callable[[int], tuple[float, float]]  # frame -> centre in pixels of the square frame


@dataclass(frozen=True)
class Actor:
    """A thing and how it moves: centre by frame, spin in radians per frame, growth per frame. `target`: it counts."""

    thing: Thing
    path: Path2
    spin: float = 0.0
    growth: float = 1.0
    target: bool = True

    def at(self, frame: int) -> Thing:
        """The thing as it is in this frame."""
        x, y = self.path(frame)
        radius = float(
            np.clip(self.thing.radius * self.growth**frame, 0.5 * self.thing.radius, 1.7 * self.thing.radius)
        )
        return replace(self.thing, x=x, y=y, rotation=self.thing.rotation + self.spin * frame, radius=radius)

    def paint(self, image: F32, ids: U8, frame: int, index: int, camera: tuple[float, float]) -> None:
        """Draw the thing as a camera that has moved by `camera` pixels sees it."""
        t = self.at(frame)
        draw(image, ids, replace(t, x=t.x - camera[0], y=t.y - camera[1]), index)


@dataclass(frozen=True)
class Hand:
    """A hand that goes with a thing or its own way; never a target."""

    limb: Limb
    path: Path2
    target: bool = False

    def paint(self, image: F32, ids: U8, frame: int, index: int, camera: tuple[float, float]) -> None:
        """Draw it over whatever is there."""
        x, y = self.path(frame)
        draw_limb(image, ids, self.limb, x - camera[0], y - camera[1])


@dataclass(frozen=True)
class Clip:
    """images [T,H,W,3] uint8 RGB; ids [T,H,W] uint8: 0 other, i+1 = targets[i]; the phrase asks for all targets."""

    images: U8
    ids: U8
    targets: tuple[Thing, ...]
    phrase: str
    category: str


def _bouncing(rng: Rng, thing: Thing, speed: float, size: int) -> Path2:
    """A straight path reflected at the frame's borders; some may leave the frame and come back."""
    heading, pace = rng.uniform(0, 2 * np.pi), speed * rng.uniform(0.2, 1.0)
    margin = 0.3 * size if rng.random() < 0.25 else -0.1 * size
    low, span = -margin, size + 2 * margin
    velocity = pace * np.array([np.cos(heading), np.sin(heading)])
    origin = np.array([thing.x, thing.y])

    def path(frame: int) -> tuple[float, float]:
        phase = np.mod(origin + velocity * frame - low, 2 * span)
        x, y = low + np.where(phase > span, 2 * span - phase, phase)
        return float(x), float(y)

    return path


def _towards(start: tuple[float, float], through: tuple[float, float], when: float) -> Path2:
    """A straight path that is at `through` in frame `when`."""

    def path(frame: int) -> tuple[float, float]:
        k = frame / when
        return start[0] + (through[0] - start[0]) * k, start[1] + (through[1] - start[1]) * k

    return path


def _screen(rng: Rng, size: int, width: float, height: float) -> Thing:
    """An occluder: a muted upright block."""
    base = sample_thing(rng, 0, SHAPES.index("square"), (1.0, 1.0), size)
    grey = rng.uniform(40, 150)
    rgb = (float(grey + rng.uniform(-12, 12)), float(grey), float(grey + rng.uniform(-12, 12)))
    return replace(
        base, rgb=rgb, radius=1.0, stretch=(width / 1.77, height / 1.77), rotation=0.0, mark=0, look="flat", rim=False
    )


def _still(x: float, y: float) -> Path2:
    return lambda frame: (x, y)


def render(
    rng: Rng,
    actors: Sequence[Actor | Hand],
    frames: int,
    size: int,
    drift: float,
    place: Callable[[Rng, int], F32] = background,
) -> tuple[U8, U8]:
    """Draw the actors in order over a background drifting `drift` pixels per frame; light and noise change."""
    pad = int(drift * frames) + 1
    scenery = place(rng, size + 2 * pad)
    heading, flicker = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.08)
    blur, noise = float(rng.uniform(0.4, 1.1)) if rng.random() < 0.4 else 0.0, float(rng.uniform(1, 7))
    images = np.zeros((frames, size, size, 3), np.uint8)
    ids = np.zeros((frames, size, size), np.uint8)
    grain = rng.standard_normal((size + 31, size + 31, 3)).astype(np.float32)
    for f in range(frames):
        dx, dy = (round(float(v) * drift * f) for v in (np.cos(heading), np.sin(heading)))
        image: F32 = np.ascontiguousarray(scenery[pad + dy : pad + dy + size, pad + dx : pad + dx + size])
        index = 0
        for actor in actors:
            index += actor.target
            moved = (float(dx), float(dy)) if drift > 0 else (0.0, 0.0)
            actor.paint(image, ids[f], f, index if actor.target else 0, moved)
        oy, ox = rng.integers(0, 31, 2)
        image = (
            image * np.float32(1 + flicker * np.sin(0.7 * f))
            + np.float32(noise) * grain[oy : oy + size, ox : ox + size]
        )
        if blur:
            image = cv2.GaussianBlur(image, (0, 0), blur)
        images[f] = np.clip(image, 0, 255).astype(np.uint8)
    return images, ids


def _actors(rng: Rng, things: Sequence[Thing], speed: float, size: int) -> list[Actor]:
    return [
        Actor(
            t,
            _bouncing(rng, t, speed, size),
            float(rng.uniform(-0.12, 0.12)) * (rng.random() < 0.6),
            float(rng.uniform(0.98, 1.02)),
        )
        for t in things
    ]


def training_clip(rng: Rng, frames: int, size: int = SIZE, staged_share: float = 0.0) -> tuple[U8, U8]:
    """A short wild clip: images [T,S,S,3], ids [T,S,S]; half with a double or a meeting, more with a screen."""
    if staged_share and rng.random() < staged_share:
        return shuffled_clip(rng, frames, size)
    squash = sample_squash(rng)
    pairs = sample_pairs(rng, False, True)[: int(rng.integers(2, 6))]
    things = [sample_thing(rng, c, s, squash, size) for c, s in pairs]
    things = [replace(t, radius=float(np.clip(t.radius, 0.05 * size, 0.19 * size))) for t in things]
    if rng.random() < 0.55:
        original = things[0]
        x, y = rng.uniform(0.15 * size, 0.85 * size, 2)
        things.append(replace(original, x=float(x), y=float(y), radius=original.radius * float(rng.uniform(0.9, 1.1))))
    speed = float(np.exp(rng.uniform(np.log(2), np.log(22)))) * size / SIZE
    actors = _actors(rng, things, speed, size)
    if rng.random() < 0.5:
        actors = _meeting(rng, actors, frames, size)
    rng.shuffle(actors)
    if rng.random() < 0.45:
        actors.append(_covering(rng, actors[int(rng.integers(len(actors)))], frames, size))
    if rng.random() < 0.2:
        screen = _screen(rng, size, rng.uniform(0.08, 0.3) * size, rng.uniform(0.3, 1.2) * size)
        x, y = rng.uniform(0, size, 2)
        actors.append(Actor(screen, _bouncing(rng, replace(screen, x=float(x), y=float(y)), speed, size), target=False))
    drift = float(rng.uniform(0, 3)) if rng.random() < 0.35 else 0.0
    return render(rng, actors, frames, size, drift)


def _swap(a: Thing, b: Thing, lift: float, begin: float, end: float) -> Path2:
    """From `a` towards `b` on a bow `lift` pixels high, between two phases of the whole way (0 to 1)."""

    def path(frame: int) -> tuple[float, float]:
        k = float(np.clip((frame - begin) / (end - begin), 0, 1))
        k = k * k * (3 - 2 * k)
        return a.x + (b.x - a.x) * k, a.y + (b.y - a.y) * k + lift * 4 * k * (1 - k)

    return path


def shuffled_clip(rng: Rng, frames: int, size: int = SIZE) -> tuple[U8, U8]:
    """A line-up of identical things; two of them change places before and behind each other, mostly led by hands."""
    things = line_up(rng, size)
    first, second = (int(i) for i in rng.permutation(len(things))[:2])
    begin, length = frames * float(rng.uniform(-0.5, 0.3)), float(rng.uniform(8, 22))
    bow = float(rng.uniform(0.1, 0.6)) * things[0].radius
    paths = {
        first: _swap(things[first], things[second], bow, begin, begin + length),
        second: _swap(things[second], things[first], -bow, begin, begin + length),
    }
    cast = [Actor(t, paths.get(i, _still(t.x, t.y))) for i, t in enumerate(things)]
    order = sorted(range(len(cast)), key=lambda i: cast[i].path(frames // 2)[1])
    actors: list[Actor | Hand] = [cast[i] for i in order]
    for i in paths:
        if rng.random() < 0.7:
            at = order.index(i) + 1 if rng.random() < 0.5 else len(actors)
            actors.insert(at, _leading(rng, cast[i]))
    return render(rng, actors, frames, size, 0.0, stage)


def _leading(rng: Rng, actor: Actor) -> Hand:
    """A hand on top of or beside a thing, going with it."""
    radius, where = actor.thing.radius, float(rng.uniform(0, np.pi))
    limb = sample_limb(rng, float(rng.uniform(0.7, 1.3)) * radius, actor.thing.stretch)
    reach = float(rng.uniform(0.6, 1.2)) * radius
    dx, dy = (reach * v for v in (np.cos(where) * actor.thing.stretch[0], -np.sin(where) * actor.thing.stretch[1]))

    def path(frame: int) -> tuple[float, float]:
        x, y = actor.path(frame)
        return x + float(dx), y + float(dy)

    return Hand(limb, path)


def _meeting(rng: Rng, actors: list[Actor], frames: int, size: int) -> list[Actor]:
    """The first and the last actor (an original and its double, where there is one) pass over each other mid-clip."""
    spot = rng.uniform(0.3, 0.7, 2) * size
    when = frames * float(rng.uniform(0.3, 0.7))
    met = list(actors)
    for i in {0, len(actors) - 1}:
        start, aside = rng.uniform(0.12, 0.88, 2) * size, spot + rng.normal(0, 0.3, 2) * actors[i].thing.radius
        met[i] = replace(
            actors[i], path=_towards((float(start[0]), float(start[1])), (float(aside[0]), float(aside[1])), when)
        )
    return met


def _covering(rng: Rng, actor: Actor, frames: int, size: int) -> Actor:
    """A standing screen in this actor's way: it vanishes mid-clip and, if it keeps moving, comes out again."""
    where = actor.path(int(frames * rng.uniform(0.3, 0.6)))
    width, height = rng.uniform(1.8, 3.5, 2) * actor.thing.radius
    return Actor(_screen(rng, size, float(width), float(height)), _still(*where), target=False)


# ------------------------------------------------------------------------------------------------ evaluation clips
def _seen_pair(rng: Rng) -> tuple[int, int]:
    while True:
        pair = int(rng.integers(N_COLOURS)), int(rng.integers(N_SHAPES))
        if pair not in HELD_OUT:
            return pair


def _named(rng: Rng, colour: int, shape: int, size: int) -> Thing:
    """A clearly visible thing as 16:9 video shows it in a square frame."""
    t = sample_thing(rng, colour, shape, (HEIGHT / WIDTH, 1.0), size)
    return replace(
        t,
        radius=float(rng.uniform(0.11, 0.16) * size),
        rotation=t.rotation if SHAPES[shape] == "cup" else float(rng.uniform(-0.4, 0.4)),
    )


def _crossing(rng: Rng, frames: int, size: int) -> tuple[list[Actor], str]:
    """Two things of one shape and different colours whose paths cross in the middle."""
    first, shape = _seen_pair(rng)
    second = next(c for c in rng.permutation(N_COLOURS) if c != first and (int(c), shape) not in HELD_OUT)
    y = rng.uniform(0.35, 0.65) * size
    meet = (0.5 * size, y)
    a, b = (_named(rng, int(c), shape, size) for c in (first, second))
    when = frames * float(rng.uniform(0.4, 0.6))
    left = (0.15 * size, y + float(rng.uniform(-0.15, 0.15)) * size)
    right = (0.85 * size, y + float(rng.uniform(-0.15, 0.15)) * size)
    return [Actor(a, _towards(left, meet, when)), Actor(b, _towards(right, meet, when))], SHAPES[shape]


def _occlusion(rng: Rng, frames: int, size: int) -> tuple[list[Actor], str]:
    """One thing passes behind a screen and is out of sight for ten frames; another of its shape stays in the open."""
    colour, shape = _seen_pair(rng)
    other = next(c for c in rng.permutation(N_COLOURS) if c != colour and (int(c), shape) not in HELD_OUT)
    a = _named(rng, colour, shape, size)
    bystander = replace(_named(rng, int(other), shape, size), radius=0.1 * size)
    speed = 0.74 * size / frames
    cover = coverage(replace(a, x=size / 2, y=size / 2), size)
    _, _, width, height = cv2.boundingRect(cover)
    y = 0.32 * size
    screen = _screen(rng, size, width + 10.0 * speed, 1.3 * height)
    path = _towards((0.13 * size, y), (0.5 * size, y), frames / 2)
    aside = _towards((0.2 * size, 0.78 * size), (0.5 * size, 0.8 * size), frames * 0.8)
    return [Actor(bystander, aside), Actor(a, path), Actor(screen, _still(0.5 * size, y), target=False)], SHAPES[shape]


def _look_alike(rng: Rng, frames: int, size: int) -> tuple[list[Actor], str]:
    """Two or three things of the same colour and shape that pass close by each other, one in front of the other."""
    colour, shape = _seen_pair(rng)
    a = _named(rng, colour, shape, size)
    twins = [a, *(replace(a, radius=a.radius * float(rng.uniform(0.95, 1.05))) for _ in range(int(rng.integers(1, 3))))]
    meet = frames * float(rng.uniform(0.4, 0.6))
    y = float(rng.uniform(0.4, 0.6)) * size
    gap = 0.5 * a.radius
    starts = [(0.15 * size, y - 0.2 * size), (0.85 * size, y - 0.1 * size), (0.5 * size, 0.9 * size)]
    paths = [
        _towards(s, (0.5 * size + (i - 0.5) * 0.4 * gap, y + (i - 1) * gap), meet)
        for i, s in enumerate(starts[: len(twins)])
    ]
    if len(twins) == 3:
        paths[2] = _towards(starts[2], (0.3 * size, 0.85 * size), frames)
    return [Actor(t, p) for t, p in zip(twins, paths, strict=True)], f"{COLOURS[colour]} {SHAPES[shape]}"


_SCRIPTS = {"crossing": _crossing, "occlusion": _occlusion, "look-alike": _look_alike}


def evaluation_clip(seed: int, category: str, frames: int = 60) -> Clip:
    """One scripted clip of 480x270 frames, named by its seed; drawn larger and in a square, then widened to 16:9."""
    rng, size = np.random.default_rng([seed, CATEGORIES.index(category), 77]), 336
    actors, phrase = _SCRIPTS[category](rng, frames, size)
    images, ids = render(rng, actors, frames, size, drift=0.0)
    wide = np.stack([cv2.resize(i, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for i in images])
    labels = np.stack([cv2.resize(i, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST) for i in ids])
    return Clip(wide, labels, tuple(a.thing for a in actors if a.target), phrase, category)


def evaluation_set(count: int = 50) -> list[tuple[int, str]]:
    """(seed, category) of the held-out clips, categories in turn."""
    return [(12_000 + i, CATEGORIES[i % len(CATEGORIES)]) for i in range(count)]


def encode(clip: Clip, path: Path, crf: int = 23) -> None:
    """Write the clip as H.264 mp4 at 25 frames/s."""
    with av.open(str(path), "w") as out:
        # x264 is otherwise not the same twice, not even on one machine: its macroblock tree reads what lies around.
        options = {"crf": str(crf), "preset": "veryfast", "x264-params": "cpu-independent=1"}
        stream = out.add_stream("libx264", rate=Fraction(FPS), options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for image in clip.images:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))


def demo_clip(frames: int = 75) -> Clip:
    """What `masklet demo` plays: a red circle, a blue star, a green triangle and two others cross each other."""
    rng, size = np.random.default_rng([4, 83]), 336
    cast = (("yellow", "square"), ("blue", "circle"), ("green", "triangle"), ("blue", "star"), ("red", "circle"))
    things = [_named(rng, COLOURS.index(c), SHAPES.index(s), size) for c, s in cast]
    ways = (
        ((0.5, 0.85), (0.5, 0.8)),
        ((0.9, 0.2), (0.8, 0.5)),
        ((0.15, 0.75), (0.5, 0.6)),
        ((0.85, 0.8), (0.5, 0.5)),
        ((0.1, 0.2), (0.5, 0.4)),
    )
    paths = [_towards((a * size, b * size), (c * size, d * size), frames * 0.55) for (a, b), (c, d) in ways]
    actors = [Actor(replace(t, look="solid"), p) for t, p in zip(things, paths, strict=True)]
    images, ids = render(rng, actors, frames, size, drift=0.0)
    wide = np.stack([cv2.resize(i, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for i in images])
    labels = np.stack([cv2.resize(i, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST) for i in ids])
    return Clip(wide, labels, tuple(things), "thing", "demo")


def visible(ids: U8, target: int) -> U8:
    """Which frames [T] show target (0-based) with enough pixels to count."""
    shown: U8 = ((ids == target + 1).sum((1, 2)) >= MIN_PIXELS).astype(np.uint8)
    return shown


def main() -> None:
    """Encode the evaluation clips into a folder, with a JSON line each."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--demo", action="store_true", help="only demo.mp4")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.demo:
        encode(demo_clip(), args.out / "demo.mp4")
        return
    for seed, category in evaluation_set(args.count):
        clip = evaluation_clip(seed, category)
        encode(clip, args.out / f"{seed}.mp4")
        print(
            json.dumps(
                {"file": f"{seed}.mp4", "category": category, "phrase": clip.phrase, "targets": len(clip.targets)}
            )
        )


if __name__ == "__main__":
    main()
