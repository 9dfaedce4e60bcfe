"""Text-prompted segmentation of frames with SAM3 or SAM3-LiteText (arXiv 2511.16719, arXiv 2602.12173).

Frames go through the image encoder in batches, all phrases of these frames through one DETR call, and what nobody
asked for is not computed: masks of queries below the threshold, fine features of frames without a hit. Three
transfers per batch leave the device: scores, overlaps, and what is reported.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from configs.schema import DetectorConfig
from pipeline.ahead import Ahead, result_of
from pipeline.checkpoints import Checkpoint
from pipeline.compiled import Backend
from pipeline.detectors.sam3_network import Decoded, Sam3Network
from pipeline.device_memory import download, upload, with_smaller_batches
from pipeline.errors import UsageError
from pipeline.torch_masks import filled, greedy_nms, mask_iou, within_boxes
from pipeline.types import BoxPrompt, Detections, Float32Array, Frame, Prompts, UInt8Array

_PAIRS_PER_CALL = 32
"""(frame, phrase) pairs in one DETR call; each takes about 50 MB in bfloat16 at 1008 px."""

_MID_GREY, _HALF_RANGE = 127.5, 127.5
"""``Sam3ImageProcessor``: rescale by 1/255, mean 0.5, standard deviation 0.5."""


def to_pixels(images: Sequence[UInt8Array], size: int, device: torch.device | str) -> Tensor:
    """Model input ``(F, 3, size, size)``, float32: equal to ``Sam3ImageProcessor``'s.

    Resizing happens on the CPU, where the processor does it too (CUDA rounds differently); a decode worker ships
    frames that have the size already. The rest happens on the device.
    """
    pixels = torch.stack([_resized(i, size) for i in images])
    return _normalise(upload(pixels.numpy(), torch.device(device)).permute(0, 3, 1, 2).contiguous())


def _resized(image: UInt8Array, size: int) -> Tensor:
    """``(size, size, 3)``"""
    pixels = torch.from_numpy(image)
    if pixels.shape[:2] == (size, size):
        return pixels
    resized: Tensor = tv.resize(
        pixels.permute(2, 0, 1), [size, size], interpolation=tv.InterpolationMode.BILINEAR, antialias=True
    )
    return resized.permute(1, 2, 0)


def _normalise(pixels: Tensor) -> Tensor:
    return (pixels.float() - _MID_GREY) / _HALF_RANGE


class FeatureCache:
    """Vision features of the latest frames, for the tracker that comes after the detector.

    A hit needs the same stream, index and picture: a stream that starts again with other pictures finds nothing.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[tuple[str, int], tuple[UInt8Array, Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def make_room(self, capacity: int) -> None:
        """Keep at least so many from now on."""
        self._capacity = max(self._capacity, capacity)

    def get(self, frame: Frame) -> Tensor | None:
        """``(1, tokens, C)``, or ``None``."""
        image, state = self._entries.get((frame.stream_id, frame.index), (None, None))
        same = image is frame.image or (image is not None and np.array_equal(image, frame.image))
        return state if same else None

    def put(self, frame: Frame, state: Tensor) -> None:
        """Keep ``state``; the oldest entry goes when there are too many."""
        key = (frame.stream_id, frame.index)
        self._entries[key] = (frame.image, state)
        self._entries.move_to_end(key)
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Hits:
    """What passed the score threshold; row i is one query of one (frame, phrase) pair, frames ascending."""

    frame: NDArray[np.int64]
    phrase: NDArray[np.int64]
    score: Float32Array
    boxes: Tensor
    """``(N, 4)`` xyxy in 0..1, on the device."""
    masks: Tensor
    """``(N, h, w)`` float32 logits, on the device."""

    @classmethod
    def cat(cls, parts: Sequence[_Hits]) -> _Hits:
        return cls(
            np.concatenate([p.frame for p in parts]),
            np.concatenate([p.phrase for p in parts]),
            np.concatenate([p.score for p in parts]),
            torch.cat([p.boxes for p in parts]),
            torch.cat([p.masks for p in parts]),
        )


class Sam3LiteTextDetector:
    """Finds every instance of every phrase on frames; also hands out the vision features the memory tracker shares.

    Args:
        checkpoint: the weights; loaded without their text encoder.
        config: thresholds and batch size.
        device: where to run.
        dtype: of the large layers; boxes and scores stay float32.
        compile_with: a backend of ``torch.compile`` for image encoder and DETR; ``None``: they are not compiled.
        num_streams: whose frames come in turns; so many more are remembered for their trackers.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: DetectorConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        compile_with: Backend | None = None,
        num_streams: int = 1,
    ) -> None:
        self._config, self.device = config, torch.device(device)
        self._network = Sam3Network(checkpoint.load_detector(device, dtype))
        if compile_with is not None:
            self._network.compile(config.batch_frames, _PAIRS_PER_CALL, compile_with)
        self.image_size = checkpoint.image_size
        """Side of the square model input, pixels."""
        self._pairs_per_call, self._max_pairs = _PAIRS_PER_CALL, 1 << 30
        self._frames_per_call = config.batch_frames
        # The tracker follows one batch behind; the second batch is for streams that are not in step.
        self._cache = FeatureCache(2 * max(config.batch_frames, num_streams))
        self._ahead, self._begun = Ahead(), set[tuple[str, int]]()
        self.looks_ahead = self.device.type == "cuda"
        """Whether :meth:`prefetch` is of use: a CPU has no time to spare while somebody waits."""

    @torch.no_grad()
    def features(self, frame: Frame) -> Tensor:
        """The image encoder's last hidden state ``(1, tokens, C)`` of this frame, from the cache when it is there."""
        self._ahead.turn()
        return self._encode([frame])

    def prefetch(self, frames: Sequence[Frame]) -> None:
        """Begin with the features of frames that :meth:`detect` will be given after its next call.

        :meth:`meanwhile` goes on with them, bit by bit while the frames before are looked at and tracked. Results are
        the same without it, to the bit.
        """
        self._cache.make_room(2 * len(frames))
        batches = self._batches(frames)

        def work() -> Generator[None, None, None]:
            for batch in batches:
                self._keep(batch, (yield from self._encoding(batch)))

        num_steps = len(batches) * self._network.num_stages
        self._ahead.begin(work(), num_steps, num_turns=1 + len(frames))
        self._begun = {(f.stream_id, f.index) for f in frames}

    def meanwhile(self) -> None:
        """Give the device a bit of the next frames' work; for who has asked it for something and is about to wait."""
        self._ahead.step()

    def catch_up(self) -> None:
        """Launch what :meth:`prefetch` began with and nobody has waited for."""
        self._ahead.finish()

    @torch.no_grad()
    def detect(self, frames: Sequence[Frame], prompts: Prompts) -> list[Detections]:
        """One :class:`Detections` per frame: above the threshold, after suppression and vetoes, best score first.

        Mask logits have the model's low resolution (288 px for 1008 px input); boxes are the model's, clipped to the
        frame. Without memory for a batch, half as many frames and phrases at a time from then on.

        Raises:
            DeviceError: even one phrase on one frame does not fit.
        """
        self._cache.make_room(2 * len(frames))
        self._ahead.turn()
        most = min(self._config.batch_frames * max(len(prompts.phrases), 1), self._max_pairs)
        found, pairs = with_smaller_batches(lambda size: self._detect_all(frames, prompts, size), most, "phrase")
        if pairs < most:
            self._max_pairs = pairs
        return found

    def _detect_all(self, frames: Sequence[Frame], prompts: Prompts, max_pairs: int) -> list[Detections]:
        """As :meth:`detect`, in batches of at most ``max_pairs`` (frame, phrase) pairs, or of one frame."""
        self._frames_per_call = min(self._config.batch_frames, max(1, max_pairs // max(len(prompts.phrases), 1)))
        self._pairs_per_call = min(max_pairs, _PAIRS_PER_CALL)
        return [found for batch in self._batches(frames) for found in self._detect(batch, prompts)]

    def _batches(self, frames: Sequence[Frame]) -> list[Sequence[Frame]]:
        """As many frames as there is memory for at a time."""
        step = self._frames_per_call
        return [frames[i : i + step] for i in range(0, len(frames), step)]

    @torch.no_grad()
    def encode_boxes(self, frame: Frame, boxes: Sequence[BoxPrompt], prompts: Prompts) -> Prompts:
        """Prompts that also say "like this" or "not like this", on this frame and all others.

        The geometry encoder's tokens of the boxes follow the tokens of every wanted phrase; vetoes stay as they are.
        With boxes alone the phrase to encode is ``visual``, as in transformers' ``Sam3Processor``.

        Args:
            boxes: exemplars drawn on ``frame``.

        Raises:
            UsageError: no box, a box of another frame, or one without area inside the frame.
        """
        corners, labels = _normalised_boxes(frame, boxes)
        coarse = self._network.coarse(self._encode([frame]))
        tokens = self._network.box_tokens(coarse, corners.to(self.device), labels.to(self.device))
        return _with_exemplars(prompts, tokens.cpu().numpy())

    def _encode(self, frames: Sequence[Frame]) -> Tensor:
        """Last hidden states ``(F, tokens, C)``; only frames that are not in the cache are computed."""
        if any((f.stream_id, f.index) in self._begun for f in frames):
            self._ahead.finish()
        states = [self._cache.get(f) for f in frames]
        missing = [i for i, state in enumerate(states) if state is None]
        if missing:
            fresh = result_of(self._encoding([frames[i] for i in missing]))
            self._keep([frames[i] for i in missing], fresh)
            for i, state in zip(missing, fresh.split(1), strict=True):
                states[i] = state
            if len(missing) == len(frames):
                return fresh
        known = [s for s in states if s is not None]
        return known[0] if len(known) == 1 else torch.cat(known)

    def _keep(self, frames: Sequence[Frame], states: Tensor) -> None:
        for frame, state in zip(frames, states.split(1), strict=True):
            self._cache.put(frame, state)

    def _encoding(self, frames: Sequence[Frame]) -> Generator[None, None, Tensor]:
        """Last hidden states ``(F, tokens, C)`` in steps, computed."""
        return (yield from self._network.encoding(to_pixels([f.image for f in frames], self.image_size, self.device)))

    def _detect(self, frames: Sequence[Frame], prompts: Prompts) -> list[Detections]:
        hits = self._hits(self._encode(frames), prompts)
        kept = [
            rows[_select(hits.score[rows], hits.phrase[rows], iou, prompts.num_wanted, self._config)]
            for rows, iou in self._overlaps(hits, len(frames))
        ]
        chosen = np.concatenate(kept)
        index = upload(chosen, self.device)
        boxes = download(hits.boxes[index])
        masks = download(filled(hits.masks[index], self._config.fill_hole_area_px), self.meanwhile)
        found, start = [], 0
        for frame, rows in zip(frames, kept, strict=True):
            part = slice(start, start := start + len(rows))
            found.append(
                Detections(
                    _to_source(boxes[part], frame.source_size),
                    hits.score[rows],
                    hits.phrase[rows].astype(np.int16),
                    masks[part],
                )
            )
        return found

    def _overlaps(self, hits: _Hits, num_frames: int) -> list[tuple[NDArray[np.int64], Float32Array]]:
        """Rows of each frame and the mask IoU among them, ``(n, n)``; one transfer for all frames."""
        inside = hits.masks > 0
        rows = [np.flatnonzero(hits.frame == number) for number in range(num_frames)]
        blocks = [inside[r[0] : r[-1] + 1] if len(r) else inside[:0] for r in rows]
        flat = download(torch.cat([mask_iou(block, block).flatten() for block in blocks]), self.meanwhile)
        split = np.split(flat, np.cumsum([len(r) ** 2 for r in rows])[:-1])
        return [(r, iou.reshape(len(r), len(r))) for r, iou in zip(rows, split, strict=True)]

    def _hits(self, states: Tensor, prompts: Prompts) -> _Hits:
        """Queries above the threshold of all frames and phrases, with their masks."""
        num_phrases = len(prompts.phrases)
        pairs = torch.arange(len(states) * num_phrases)
        coarse = self._network.coarse(states)
        text = upload(prompts.embeddings, self.device)
        mask = upload(prompts.mask, self.device)
        parts = []
        for some in pairs.split(self._pairs_per_call):
            frame, phrase = some // num_phrases, some % num_phrases
            of_frame, of_phrase = upload(torch.stack([frame, phrase]).numpy(), self.device)
            parts.append(self._pair_hits(states, coarse[of_frame], frame, phrase, text[of_phrase], mask[of_phrase]))
        return _Hits.cat(parts)

    def _pair_hits(
        self, states: Tensor, coarse: Tensor, frame: Tensor, phrase: Tensor, text: Tensor, mask: Tensor
    ) -> _Hits:
        """As :meth:`_hits`, for B pairs: ``frame`` and ``phrase`` ``(B,)`` on the CPU, the rest ``(B, ...)``."""
        decoded = self._network.decode(coarse, text, mask)
        # The one wait of this call: what follows is for what passed only.
        score = torch.from_numpy(download(self._scores(decoded, phrase), self.meanwhile))
        pair, query = torch.nonzero(score > self._config.score_threshold, as_tuple=True)
        masks = self._network.masks(states, frame, decoded, text, mask, pair, query)
        at = upload(torch.stack([pair, query]).numpy(), self.device)
        boxes = decoded.boxes[at[0], at[1]]
        if self._config.mask_margin is not None:
            masks = within_boxes(masks, boxes, self._config.mask_margin)
        return _Hits(frame[pair].numpy(), phrase[pair].numpy(), score[pair, query].numpy(), boxes, masks)

    def _scores(self, decoded: Decoded, phrase: Tensor) -> Tensor:
        """``(B, Q)`` of B pairs whose phrases are ``phrase``; a benchmark decides for itself what passes."""
        return decoded.score


def _select(
    score: Float32Array, phrase: NDArray[np.int64], iou: Float32Array, num_wanted: int, config: DetectorConfig
) -> NDArray[np.int64]:
    """Rows of one frame to report, best first: suppression within each phrase, then vetoes across phrases."""
    kept: list[int] = []
    for number in np.unique(phrase):
        rows = np.flatnonzero(phrase == number)
        kept += rows[greedy_nms(iou[np.ix_(rows, rows)], score[rows], config.nms_iou)].tolist()
    survivors = np.array(sorted(kept), np.int64)
    vetoes, wanted = survivors[phrase[survivors] >= num_wanted], survivors[phrase[survivors] < num_wanted]
    vetoed = (iou[np.ix_(wanted, vetoes)] >= config.veto_iou).any(axis=1)
    wanted = wanted[~vetoed]
    return wanted[np.argsort(-score[wanted], kind="stable")]


def _to_source(boxes: Float32Array, source_size: tuple[int, int]) -> Float32Array:
    """``(N, 4)`` xyxy in 0..1 to pixels of the source frame, clipped to it."""
    height, width = source_size
    scale = np.array([width, height, width, height], np.float32)
    clipped: Float32Array = np.clip(boxes * scale, 0, scale)
    return clipped


def _normalised_boxes(frame: Frame, boxes: Sequence[BoxPrompt]) -> tuple[Tensor, Tensor]:
    """cxcywh in 0..1 ``(1, N, 4)`` and labels ``(1, N)``, as the geometry encoder takes them."""
    if not boxes:
        raise UsageError("no exemplar box", f"frame {frame.index}", "give at least one")
    height, width = frame.source_size
    corners = []
    for box in boxes:
        x1, y1, x2, y2 = box.xyxy
        x1, x2, y1, y2 = max(x1, 0.0), min(x2, width), max(y1, 0.0), min(y2, height)
        if box.frame != frame.index:
            raise UsageError(f"a box of frame {box.frame}", f"given with frame {frame.index}", "encode it with its own")
        if not (x1 < x2 and y1 < y2):
            where = f"frame {frame.index}, {width}x{height} px"
            raise UsageError(f"the box {box.xyxy} has no area inside the frame", where, "give x1,y1,x2,y2 in pixels")
        corners.append(((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height))
    return torch.tensor([corners], dtype=torch.float32), torch.tensor([[int(b.positive) for b in boxes]])


def _with_exemplars(prompts: Prompts, tokens: Float32Array) -> Prompts:
    """``prompts`` with exemplar tokens ``(1, K, C)`` after those of every wanted phrase."""
    num, length = len(prompts.phrases), tokens.shape[1]
    wanted = np.repeat(np.arange(num)[:, None] < prompts.num_wanted, length, axis=1)
    return Prompts(
        prompts.phrases,
        np.concatenate([prompts.embeddings, np.repeat(tokens, num, axis=0)], axis=1),
        np.concatenate([prompts.mask, wanted], axis=1),
        prompts.num_vetoes,
    )
