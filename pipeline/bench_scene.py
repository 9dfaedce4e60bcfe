"""A scene that fixes what is found and tracked, so that speed is measured with exactly K objects.

All compute is paid: the networks run in full on every frame. Only the *values* of detections and of propagated masks
are replaced by the scene's, so that K objects are born on the first frame, matched on every frame and reconditioned
when that is due, whatever the weights. Needs only torch, transformers, NumPy, OpenCV and pycocotools.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.schema import DetectorConfig, TrackerConfig
from pipeline.checkpoints import Checkpoint
from pipeline.compiled import Backend
from pipeline.detectors.sam3_litetext import Sam3LiteTextDetector
from pipeline.detectors.sam3_network import Decoded as DetrDecoded
from pipeline.device_memory import upload
from pipeline.types import Detections, Float32Array, Frame, Int64Array, Prompts, UInt8Array
from trackers.sam3_memory import Sam3MemoryTracker, TrackerNetworks
from trackers.sam_heads import Decoded

DETECTED, IN_PICTURE = 0.95, 5.0
"""Score of every detection; logit that a tracked object is in the picture."""


@dataclass(frozen=True)
class Scene:
    """K boxes on a grid that step one pixel every four frames, object i of phrase ``i * P // K``."""

    objects: int
    prompts: int
    mask_side: int
    """Of the low-resolution masks, pixels."""

    @property
    def prompt_id(self) -> np.ndarray[Any, np.dtype[np.int16]]:
        """``(K,)`` phrase of each object, ascending."""
        return (np.arange(self.objects) * self.prompts // self.objects).astype(np.int16)

    @cached_property
    def _pictures(self) -> Float32Array:
        """``(2, K, h, w)`` logits of +-10, before and after the step."""
        side = math.ceil(math.sqrt(self.objects))
        cell = self.mask_side // side
        pictures = np.full((2, self.objects, self.mask_side, self.mask_side), -10, np.float32)
        for i in range(self.objects):
            y, x = i // side * cell, i % side * cell
            for step in (0, 1):
                pictures[step, i, y + step : y + cell - 1 + step, x + step : x + cell - 1 + step] = 10
        return pictures

    def logits(self, t: int) -> Float32Array:
        """``(K, h, w)`` mask logits of frame ``t``."""
        masks: Float32Array = self._pictures[t // 4 % 2]
        return masks

    @cached_property
    def _boxes(self) -> Float32Array:
        """``(2, K, 4)`` xyxy in 0..1, before and after the step."""
        inside = self._pictures > 0
        rows, cols = inside.any(3), inside.any(2)
        y1, x1 = rows.argmax(2), cols.argmax(2)
        boxes = np.stack([x1, y1, x1 + cols.sum(2), y1 + rows.sum(2)], axis=2) / self.mask_side
        return boxes.astype(np.float32)

    @lru_cache(maxsize=2)  # noqa: B019 -- a handful of scenes live as long as a benchmark
    def _on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(self._pictures).to(device, dtype)

    def logits_on(self, t: int, like: Tensor) -> Tensor:
        """:meth:`logits` on the device and in the dtype of ``like``, without a transfer for each frame."""
        return self._on(like.device, like.dtype)[t // 4 % 2]

    def detections(self, t: int, source_size: tuple[int, int]) -> Detections:
        """All objects of frame ``t``, in order."""
        scaled = (self._boxes[t // 4 % 2] * np.array([*source_size[::-1]] * 2)).astype(np.float32)
        return Detections(scaled, np.full(self.objects, DETECTED, np.float32), self.prompt_id, self.logits(t))

    def picture(self, t: int, side: int) -> UInt8Array:
        """``(side, side, 3)``: every object in a colour of its own on grey, with noise; repeats after 16 frames."""
        rng = np.random.default_rng(t % 16)
        noise = rng.integers(-20, 21, (side, side, 3))
        colours = np.random.default_rng(self.objects).integers(30, 226, (self.objects, 3))
        at = np.arange(side) * self.mask_side // side
        canvas = np.full((side, side, 3), 128)
        for inside, colour in zip((self.logits(t) > 0)[:, at][:, :, at], colours, strict=True):
            canvas[inside] = colour
        return (canvas + noise).astype(np.uint8)

    def fits(self) -> bool:
        """Whether every object has pixels."""
        return self.mask_side // math.ceil(math.sqrt(self.objects)) >= 2


class ForcedDetector(Sam3LiteTextDetector):
    """The detector, whose answers are the scene's. As many queries pass as there are objects, so masks are paid for."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: DetectorConfig,
        device: Any,
        dtype: torch.dtype,
        compile_with: Backend | None = None,
    ) -> None:
        super().__init__(checkpoint, config, device, dtype, compile_with=compile_with)
        # Two subjects take turns, each with a batch to track and one that has begun.
        self._cache.make_room(4 * config.batch_frames)
        self.scene = Scene(1, 1, checkpoint.low_res_size)
        self.watch = Stopwatch(time.perf_counter)

    def detect(self, frames: Sequence[Frame], prompts: Prompts) -> list[Detections]:
        """The scene's objects, after the work."""
        with self.watch.part("detection"):
            super().detect(frames, prompts)
        return [self.scene.detections(f.index, f.source_size) for f in frames]

    def _encoding(self, frames: Sequence[Frame]) -> Generator[None, None, Tensor]:
        work = super()._encoding(frames)
        while True:
            with self.watch.part("image encoder"):
                try:
                    next(work)
                except StopIteration as finished:
                    states: Tensor = finished.value
                    return states
            yield

    def _scores(self, decoded: DetrDecoded, phrase: Tensor) -> Tensor:
        wanted = torch.from_numpy(np.bincount(self.scene.prompt_id, minlength=self.scene.prompts))[phrase]
        passes = torch.arange(decoded.logits.shape[1]) < wanted[:, None]
        return torch.where(passes, DETECTED, 0.0).to(decoded.logits)


class ForcedTracker(Sam3MemoryTracker):
    """The memory tracker, to whom every object seems to be where the scene has it."""

    def __init__(
        self,
        scene: Scene,
        parts: TrackerNetworks,
        features: Callable[[Frame], Tensor],
        config: TrackerConfig,
        name: str,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(parts, features, config, stream_id=name, meanwhile=meanwhile)
        self.raw: dict[int, Tensor] = {}
        """What the networks said of the latest frame: mask logits ``(h, w)`` by row."""
        propagate = self._heads.propagate

        def forced(vision: Any, bank: Any, step: int, rows: Int64Array | None = None) -> Decoded:
            found = propagate(vision, bank, step, rows)
            at = np.arange(len(bank)) if rows is None else rows
            self.raw = dict(zip(at.tolist(), found.logits, strict=True))
            logits = scene.logits_on(step, found.logits)[upload(at, found.logits.device)]
            return Decoded(logits, torch.full_like(found.object_logit, IN_PICTURE), found.pointer)

        self._heads.propagate = forced  # type: ignore[method-assign]

    def count_parts(self, watch: Stopwatch) -> None:
        """Count what this tracker's networks do; the rest of a step is its plan."""
        watch.wrap(self, "advance", "plan")
        for method, part in (
            ("vision", "neck"),
            ("propagate", "attention"),
            ("remember", "memory"),
            ("begin", "memory"),
        ):
            watch.wrap(self._heads, method, part)


def synthetic_prompts(count: int, width: int) -> Prompts:
    """Phrases of 32 tokens each with random embeddings of this width."""
    tokens = np.random.default_rng(1).standard_normal((count, 32, width)).astype(np.float32)
    return Prompts(tuple(f"phrase {i}" for i in range(count)), tokens, np.ones((count, 32), bool))


@dataclass
class Stopwatch:
    """Exclusive seconds per part: what a wrapped method calls in turn is not counted in it.

    Args:
        clock: seconds.
        wait: called before each reading; ``torch.cuda.synchronize`` where work is asynchronous.
    """

    clock: Callable[[], float]
    wait: Callable[[], object] = lambda: None
    is_on: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    _inner: list[float] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside as this part, while it is on."""
        if not self.is_on:
            yield
            return
        self.wait()
        start = self.clock()
        self._inner.append(0.0)
        try:
            yield
        finally:
            self.wait()
            spent = self.clock() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inner.pop()
            if self._inner:
                self._inner[-1] += spent

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Count every call of ``owner.method`` as this part."""
        call = getattr(owner, method)

        @wraps(call)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return call(*args, **kwargs)

        setattr(owner, method, counted)
