"""SAM3's memory tracker: propagate all objects, plan with the detections, carry the plan out.

Order and rules are those of facebookresearch/sam3 ``sam3_video_base.py`` (``_det_track_one_frame``); where
transformers' ``Sam3VideoModel`` differs by fault (ids shifted on removal, newcomers that re-encode everyone's memory,
masks of newcomers thresholded at 0.5), Meta's original is followed. What is new: all objects in one batch, and
state whose size depends on the number of live objects only.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.schema import TrackerConfig
from pipeline.device_memory import download, upload
from pipeline.errors import RunError
from pipeline.masks import boxes_to_masks
from pipeline.telemetry import LOGGER
from pipeline.torch_masks import filled, mask_iou
from pipeline.types import Detections, Float32Array, Frame, FrameTracks, Int64Array
from trackers.adaptive import Adaptive
from trackers.appearance import FrameLooks, Gallery
from trackers.lifecycle import Evidence, Lifecycle, UpdatePlan
from trackers.memory_bank import MemoryBank
from trackers.overlap import CLEARED_LOGIT, clear_shrunk
from trackers.rendering import LowResTracks, render
from trackers.sam_heads import NO_OBJECT_LOGIT, Decoded, SamHeads, Vision
from trackers.state_files import read_state, write_state

_STATE_VERSION = 5
_TENSORS = "tracker.safetensors"
_PREFIX = "adaptive."
_BOX_LOGIT = 10.0


class TrackerNetworks(Protocol):
    """What the tracker needs of a checkpoint (``pipeline.checkpoints.TrackerParts``)."""

    @property
    def neck(self) -> Any:
        """A ``Sam3VisionNeck``."""

    @property
    def model(self) -> Any:
        """A ``Sam3TrackerVideoModel`` (its vision encoder is not used)."""


class Sam3MemoryTracker:
    """Follows every object of one stream by SAM3's memory attention.

    Args:
        parts: neck and tracker model, on their device and in their dtype; may be shared by several streams.
        features: the shared ViT's ``last_hidden_state`` of a frame, ``(1, tokens, C)``, on the same device.
        config: heuristics.
        session: see :class:`pipeline.types.FrameTracks`.
        keeps_looks: whether :meth:`appearances` will be asked for; adaptive mode needs looks itself.
        meanwhile: called before each wait for the device; see :func:`pipeline.device_memory.download`.

    Frames that arrive are consecutive to the tracker, whatever their ``index``. Ids start at 1.
    """

    def __init__(
        self,
        parts: TrackerNetworks,
        features: Callable[[Frame], Tensor],
        config: TrackerConfig,
        *,
        stream_id: str,
        session: int = 0,
        keeps_looks: bool = True,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        self._config, self._features, self._meanwhile = config, features, meanwhile
        self._keeps_looks = keeps_looks or config.mode == "adaptive"
        self._stream_id, self._session = stream_id, session
        compiled = getattr(parts, "heads", None)
        self._heads = SamHeads(parts.neck, parts.model) if compiled is None else copy.copy(compiled)
        model = parts.model.config
        self._bank = MemoryBank(
            model.num_maskmem - 1, model.max_cond_frame_num, model.max_object_pointers_in_encoder - 1
        )
        self._lifecycle = Lifecycle(config)
        self._gallery = Gallery()
        self._step = 0
        self.counters: Counter[str] = Counter()
        """What was dropped: ``over_budget``, ``nonfinite_detections``, ``non_finite`` (objects); adaptive's own."""
        self._adaptive: Adaptive | None = None
        if config.mode == "adaptive":
            self._adaptive = Adaptive(
                self._heads, self._bank, self._lifecycle, self._gallery, config, self.counters, meanwhile
            )

    @property
    def num_state_bytes(self) -> int:
        """Bytes of what is remembered: proportional to the live objects, not to time."""
        adaptive = 0 if self._adaptive is None else self._adaptive.num_bytes
        return adaptive + self._bank.num_bytes + self._gallery.num_bytes + len(json.dumps(self._lifecycle.state()))

    def step(self, frame: Frame, detections: Detections | None) -> FrameTracks:
        """Advance by one frame; masks at source resolution."""
        return render(self.advance(frame, detections), frame, self._session, self._meanwhile)

    @torch.inference_mode()
    def advance(self, frame: Frame, detections: Detections | None) -> LowResTracks:
        """Advance by one frame; masks as low-resolution logits (what :meth:`step` renders)."""
        found = self._finite(detections) if detections is not None else Detections.empty()
        det_logits = self._det_logits(found, frame)
        if self._adaptive is not None:
            return self._advance_adaptive(self._adaptive, frame, found, det_logits, detector_ran=detections is not None)
        hidden = self._features(frame) if len(self._bank) else None
        vision = self._heads.vision(hidden) if hidden is not None else None
        tracked = self._propagate(vision)
        evidence = self._evidence(tracked, found, det_logits, detector_ran=detections is not None)
        ids, prompts = self._lifecycle.track_ids, self._lifecycle.prompt_ids
        plan = self._lifecycle.plan(self._step, evidence)
        self._count(plan, ids)
        shown = tracked.logits
        if vision is not None:
            shown = self._update(vision, tracked, prompts, det_logits, plan)
        if len(plan.new):
            hidden = hidden if hidden is not None else self._features(frame)
            vision = vision or self._heads.vision(hidden)
            memory, pointer = self._heads.begin(vision, det_logits[upload(plan.new, det_logits.device)] > 0)
            self._bank.append(self._step, memory, pointer)
        if hidden is not None and self._keeps_looks:
            self._look(FrameLooks(hidden, frame.image, self._heads.mask_size), plan, shown, det_logits)
        self._step += 1
        return self._outcome(plan, ids[plan.withdrawn], evidence, shown, det_logits)

    def _advance_adaptive(
        self, adaptive: Adaptive, frame: Frame, found: Detections, det_logits: Tensor, *, detector_ran: bool
    ) -> LowResTracks:
        """See :mod:`trackers.adaptive`; nothing to follow and nothing found reads no features."""
        if len(self._bank) == 0 and len(found) == 0:
            self._step += 1
            return self._nobody()
        hidden = self._features(frame)
        looks = FrameLooks(hidden, frame.image, self._heads.mask_size)
        ids = self._lifecycle.track_ids
        low, plan = adaptive.advance(self._step, hidden, looks, found, det_logits, detector_ran=detector_ran)
        self._count(plan, ids)
        self._step += 1
        return low

    def _nobody(self) -> LowResTracks:
        ids, prompts = np.zeros(0, np.int64), np.zeros(0, np.int16)
        return LowResTracks(ids, prompts, np.zeros(0, np.float32), self._heads.nothing().logits, ids)

    def _finite(self, detections: Detections) -> Detections:
        """Without detections whose score, box or mask is NaN or infinite."""
        finite = np.isfinite(detections.score) & np.isfinite(detections.xyxy).all(1)
        with np.errstate(invalid="ignore", over="ignore"):  # a sum is much faster than a look at every pixel
            finite &= np.isfinite(detections.mask_logits.sum((1, 2)))
        if finite.all():
            return detections
        self.counters["nonfinite_detections"] += int((~finite).sum())
        return detections[finite]

    def _det_logits(self, found: Detections, frame: Frame) -> Tensor:
        """``(N, h, w)`` detected mask logits at the tracker's size; a detection with a 1x1 mask is its box."""
        size = self._heads.mask_size
        if found.mask_logits.shape[1:] == (1, 1):
            scale = np.array([size[1], size[0]] * 2) / np.array([frame.source_size[1], frame.source_size[0]] * 2)
            boxes = boxes_to_masks(found.xyxy * scale, size)
            return upload(np.where(boxes, _BOX_LOGIT, -_BOX_LOGIT).astype(np.float32), self._device)
        logits = upload(found.mask_logits, self._device)
        if logits.shape[1:] == size or len(logits) == 0:
            return logits.new_zeros(0, *size) if len(logits) == 0 else logits
        return F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]

    @property
    def _device(self) -> torch.device:
        return self._heads.device

    def _propagate(self, vision: Vision | None) -> Decoded:
        """All live objects on this frame, holes filled."""
        if vision is None:
            return self._heads.nothing()
        tracked = self._heads.propagate(vision, self._bank, self._step)
        return Decoded(filled(tracked.logits, self._config.fill_hole_area_px), tracked.object_logit, tracked.pointer)

    def _evidence(self, tracked: Decoded, found: Detections, det_logits: Tensor, *, detector_ran: bool) -> Evidence:
        """Overlaps, emptiness and finiteness, brought to the host in one transfer."""
        n, m = len(found), len(tracked.logits)
        inside = tracked.logits > 0
        iou = mask_iou(torch.cat([det_logits > 0, inside]), inside)
        finite = tracked.logits.flatten(1).isfinite().all(1) & tracked.object_logit.isfinite()
        finite &= tracked.pointer.isfinite().all(1)
        columns = torch.stack([tracked.object_logit, inside.flatten(1).any(1).float(), finite.float()])
        table = download(torch.cat([iou, columns]), self._meanwhile).astype(np.float32)
        return Evidence(
            det_score=found.score,
            det_prompt=found.prompt_id,
            det_iou=table[:n],
            track_iou=table[n : n + m],
            object_logit=table[n + m],
            is_empty=table[n + m + 1] == 0,
            is_finite=table[n + m + 2] > 0,
            detector_ran=detector_ran,
        )

    def _count(self, plan: UpdatePlan, ids: Int64Array) -> None:
        """Count what the plan drops of the objects ``ids``; say so the first time."""
        if plan.num_refused and not self.counters["over_budget"]:
            LOGGER.warning(
                "%s: more than %d objects (tracker.max_objects): the best-scoring are kept, the rest is counted",
                self._stream_id,
                self._config.max_objects,
            )
        if plan.broken.any() and not self.counters["non_finite"]:
            LOGGER.warning(
                "%s: the model returned NaN or infinity for object %s: dropped, and counted from now on",
                self._stream_id,
                ", ".join(map(str, ids[plan.broken].tolist())),
            )
        # Adding zero would create the key.
        self.counters.update({k: v for k, v in _drops(plan).items() if v})

    def _update(self, vision: Vision, tracked: Decoded, prompts: Any, det_logits: Tensor, plan: UpdatePlan) -> Tensor:
        """Remember this frame, forget the dead; returns the masks to show ``(M, h, w)``."""
        logits = tracked.logits.masked_fill(self._mask(plan.yields), CLEARED_LOGIT)
        logits = logits.masked_fill(self._mask(plan.broken), NO_OBJECT_LOGIT)
        rows = np.flatnonzero(plan.recondition >= 0)
        shown = logits.clone()
        shown[rows] = det_logits[plan.recondition[rows]]
        if self._config.recondition_with == "detected":
            logits[rows] = torch.where(shown[rows] > 0, _BOX_LOGIT, -_BOX_LOGIT)
        if self._config.non_overlapping_memory:
            logits = clear_shrunk(logits, prompts)
        memory = self._heads.remember(vision, logits)
        self._bank.write(self._step, memory, tracked.pointer, plan.recondition >= 0)
        self._bank.keep(plan.keeps)
        return shown

    def _look(self, looks: FrameLooks, plan: UpdatePlan, shown: Tensor, det_logits: Tensor) -> None:
        """Note what everyone looks like on this frame."""
        if len(shown):
            seen = looks.describe(shown > 0)
            self._gallery.see(seen, torch.ones(len(seen), dtype=torch.bool, device=seen.device))
            self._gallery.keep(plan.keeps)
        if len(plan.new):
            self._gallery.append(looks.describe(det_logits[plan.new] > 0))

    def appearances(self, track_ids: Int64Array) -> Float32Array:
        """Mean look so far of these objects, ``(n, d)`` unit vectors; see :mod:`trackers.appearance`.

        Known from an object's first row until it is withdrawn, forgotten or ended; zero for any other id. The cosine
        of two looks tells different things from the same one. Without ``keeps_looks`` nothing is known, ``(n, 0)``.
        """
        if not self._keeps_looks:
            return np.zeros((len(track_ids), 0), np.float32)
        row_of = {int(track_id): row for row, track_id in enumerate(self._lifecycle.track_ids)}
        found = np.zeros((len(track_ids), self._gallery.looks.shape[1]), np.float32)
        known = [i for i, track_id in enumerate(track_ids) if int(track_id) in row_of]
        if known:
            found[known] = self._gallery.rows([row_of[int(track_ids[i])] for i in known])
        return found

    def _mask(self, rows: Any) -> Tensor:
        return upload(rows, self._device)[:, None, None]

    def _outcome(
        self, plan: UpdatePlan, withdrawn: Any, evidence: Evidence, shown: Tensor, det_logits: Tensor
    ) -> LowResTracks:
        """Survivors that are not hidden, then newcomers with their detection's mask."""
        born = filled(det_logits[plan.new], self._config.fill_hole_area_px)
        score = 1 / (1 + np.exp(-evidence.object_logit[plan.keeps].astype(np.float64)))
        visible = np.concatenate([~plan.hidden[plan.keeps], np.ones(len(plan.new), bool)])
        logits = torch.cat([shown[np.flatnonzero(plan.keeps)], born])
        return LowResTracks(
            self._lifecycle.track_ids[visible],
            self._lifecycle.prompt_ids[visible],
            np.concatenate([score, evidence.det_score[plan.new]]).astype(np.float32)[visible],
            logits if visible.all() else logits[np.flatnonzero(visible)],
            withdrawn,
        )

    def skip(self, num_frames: int) -> None:
        """See :class:`pipeline.types.Tracker`. In exact mode nothing follows from it: attention looks everywhere."""
        if self._adaptive is not None:
            self._adaptive.trajectories.skip(num_frames)

    def forget(self, track_ids: Int64Array) -> None:
        """Stop following these objects: their memories go, nothing else changes."""
        stays = self._lifecycle.forget(track_ids)
        self._bank.keep(stays)
        if self._keeps_looks:
            self._gallery.keep(stays)
        if self._adaptive is not None:
            self._adaptive.keep(stays)

    def save(self, folder: Path) -> None:
        """Write ``tracker.json`` and ``tracker.safetensors``; :meth:`restore` continues bit-equal."""
        state = {
            "stream_id": self._stream_id,
            "session": self._session,
            "step": self._step,
            "mode": self._config.mode,
            "lifecycle": self._lifecycle.state(),
            "counters": dict(self.counters),
        }
        write_state(folder, _STATE_VERSION, state)
        tensors = self._bank.tensors() | {"looks": self._gallery.looks.contiguous()}
        if self._adaptive is not None:
            tensors |= {_PREFIX + name: tensor for name, tensor in self._adaptive.tensors().items()}
        save_file(tensors, folder / _TENSORS)

    def restore(self, folder: Path) -> None:
        """Continue from a state written by :meth:`save` with the same model and configuration.

        Raises:
            RunError: there is no state, or one of another version or mode.
        """
        state = read_state(folder, _STATE_VERSION)
        if state["mode"] != self._config.mode:
            raise RunError(f"tracker state of mode {state['mode']}, expected {self._config.mode}", str(folder))
        try:
            tensors = load_file(folder / _TENSORS, device=str(self._device))
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read the tracker's state: {error}", str(folder)) from error
        self._stream_id, self._session, self._step = state["stream_id"], state["session"], state["step"]
        self._lifecycle.load_state(state["lifecycle"])
        self._bank.load_tensors(tensors)
        self._gallery.looks = tensors["looks"] if self._keeps_looks else torch.zeros(0, 0)
        # A state that was written without looks goes on without.
        self._keeps_looks &= len(self._gallery.looks) == len(self._bank)
        if self._adaptive is not None:
            own = {name.removeprefix(_PREFIX): t for name, t in tensors.items() if name.startswith(_PREFIX)}
            self._adaptive.load_tensors(own)
        self.counters.clear()
        self.counters.update(state["counters"])


def _drops(plan: UpdatePlan) -> dict[str, int]:
    return {"over_budget": plan.num_refused, "non_finite": int(plan.broken.sum())}
