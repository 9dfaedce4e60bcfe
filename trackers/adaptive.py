"""Adaptive tracking, carried out: attention for objects in doubt, detections for the rest, memory written late.

A resting object takes its detection's mask and costs nothing more: its memory is written only when it is to attend
again, from the mask and the features of the frame before, as a conditioning frame (so as SAM2 remembers a mask that
somebody gave). Thus one frame's features are all that is kept beside the memory bank. On frames on which everybody
rests even the tracker's neck is skipped.

A mask found by attention counts as long as it lies where the object can be, looks like it and is not what another
object's detection covers; without a detection for ``hide_after_frames`` the object is hidden and sleeps, and after
``lost_frames`` it ends. The decisions are those of :mod:`trackers.attention_plan`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from configs.schema import TrackerConfig
from pipeline.device_memory import download, upload
from pipeline.torch_masks import filled, mask_iou
from pipeline.types import BoolArray, Detections, Float32Array, Int16Array, Int64Array
from trackers.appearance import FrameLooks, Gallery
from trackers.association import Association
from trackers.attention_plan import Outlook, Reason, Tracked, Verdict, judge, who_attends
from trackers.kalman import Float64Array
from trackers.lifecycle import Evidence, Lifecycle, UpdatePlan
from trackers.mask_motion import boxes, moved
from trackers.memory_bank import MemoryBank
from trackers.overlap import CLEARED_LOGIT, clear_shrunk
from trackers.rendering import LowResTracks
from trackers.sam_heads import NO_OBJECT_LOGIT, Decoded, SamHeads, Vision
from trackers.trajectory import Trajectories, extents

_COMPANY_DOUBT = 1.0
"""Doubt about where what was detected together with others is, in its own sizes: attention tells them apart, or does
not, and mostly they go on as they went."""


@dataclass(frozen=True, slots=True)
class _Survey:
    """Masks of one frame against each other, on the host. Candidates: N detections, then A masks of objects."""

    iou: Float32Array
    """``(N + A, N + A)``"""
    box: Float32Array
    """``(N + A, 4)`` tight boxes, mask pixels."""
    area: Float32Array
    """``(N + A,)`` pixels."""
    likeness: Float32Array
    """``(N + A, M)`` cosine with the objects' mean looks."""
    resemblance: Float32Array
    """``(M, M)`` cosine of the objects' mean looks."""
    looks: Tensor
    """``(N + A, d)`` on the device; ``(N + A, 0)`` while nobody is known."""

    def measured(self, candidates: Int64Array) -> tuple[Float64Array, Float64Array]:
        """Boxes ``(n, 4)`` and pixels ``(n,)`` of these candidates."""
        return self.box[candidates].astype(np.float64), self.area[candidates].astype(np.float64)

    def first(self, count: int) -> _Survey:
        """Of the first ``count`` candidates only."""
        return replace(
            self,
            iou=self.iou[:count, :count],
            box=self.box[:count],
            area=self.area[:count],
            likeness=self.likeness[:count],
            looks=self.looks[:count],
        )


@dataclass(frozen=True, slots=True)
class _Attended:
    """What memory attention found for A objects."""

    rows: Int64Array
    """``(A,)`` ascending."""
    found: Decoded
    object_logit: Float32Array
    """``(A,)``"""
    is_finite: BoolArray
    """``(A,)``"""

    def tracked(self, survey: _Survey, num_detections: int) -> Tracked:
        """As the plan wants it: candidates of ``survey`` after the detections are these objects' masks."""
        own = num_detections + np.arange(len(self.rows))
        box = survey.box[own].astype(np.float64)
        return Tracked(
            rows=self.rows,
            det_iou=survey.iou[:num_detections, num_detections:],
            centre=(box[:, :2] + box[:, 2:]) / 2,
            extent=extents(box),
            likeness=survey.likeness[own, self.rows],
            is_there=self.is_finite & (box[:, 2] > box[:, 0]),
        )


class Adaptive:
    """State and step of adaptive mode; networks, memory bank and bookkeeping are the tracker's own.

    Args:
        counters: ``attended``, ``rested``, ``slept``: objects times frames; ``recovered``: out of sight and found
            again under their old id; ``ended``: out of sight for too long.
        meanwhile: see :func:`pipeline.device_memory.download`.
    """

    def __init__(
        self,
        heads: SamHeads,
        bank: MemoryBank,
        lifecycle: Lifecycle,
        gallery: Gallery,
        config: TrackerConfig,
        counters: Counter[str],
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        self._heads, self._bank, self._lifecycle, self._gallery = heads, bank, lifecycle, gallery
        self._config, self.counters, self._meanwhile = config, counters, meanwhile
        self.trajectories = Trajectories.none()
        self.masks = torch.zeros(0, *heads.mask_size, dtype=torch.bool, device=heads.device)
        """``(M, h, w)`` where each object was last seen."""
        self.hidden: Tensor | None = None
        """The last frame's features while some memory of it is unwritten."""
        self._vision: Vision | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes held beside the bank."""
        hidden = 0 if self.hidden is None else self.hidden.numel() * self.hidden.element_size()
        return self.trajectories.num_bytes + self.masks.numel() + hidden

    def keep(self, rows: BoolArray) -> None:
        """Forget all other rows."""
        self.trajectories.keep(rows)
        self.masks = self.masks[upload(np.flatnonzero(rows), self.masks.device)]

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name."""
        columns = {name: torch.from_numpy(np.ascontiguousarray(c)) for name, c in self.trajectories.columns().items()}
        waiting = {} if self.hidden is None else {"hidden": self.hidden.contiguous()}
        return {"masks": self.masks.to(torch.uint8)} | columns | waiting

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what :meth:`tensors` returned; ``vision`` is computed again when needed, to the same bits."""
        self.masks, self.hidden, self._vision = tensors["masks"].bool(), tensors.get("hidden"), None
        columns = self.trajectories.columns()
        self.trajectories = Trajectories(**{name: tensors[name].cpu().numpy() for name in columns})

    def advance(
        self,
        step: int,
        hidden: Tensor,
        looks: FrameLooks,
        found: Detections,
        det_logits: Tensor,
        *,
        detector_ran: bool,
    ) -> tuple[LowResTracks, UpdatePlan]:
        """One frame; the bookkeeping is brought up to date, memory is written or noted as pending."""
        path = self.trajectories
        path.predict()
        inside = det_logits > 0
        survey = self._survey(torch.cat([inside, moved(self.masks, path.shift)]), looks)
        outlook = self._outlook(found, survey, detector_ran)
        reason, rests = who_attends(outlook, self._config)
        frame = _Frame(hidden, self._heads)
        attended = self._attend(step, frame, np.flatnonzero((rests < 0) & (reason != Reason.SLEEPS)))
        if len(attended.rows):
            survey = self._survey(torch.cat([inside, attended.found.logits > 0]), looks)
        else:
            survey = survey.first(len(found))
        verdict = judge(outlook, reason, rests, attended.tracked(survey, len(found)), self._config)
        final = self._final(det_logits, attended, verdict.shows)
        evidence = self._evidence(found, attended, survey, verdict.shows, detector_ran)
        ids, prompts = self._lifecycle.track_ids, self._lifecycle.prompt_ids
        plan = self._lifecycle.plan(step, evidence, self._matches(found, evidence, verdict, detector_ran))
        final = final.masked_fill(upload(plan.yields, final.device)[:, None, None], CLEARED_LOGIT)
        self._count(verdict)
        self._remember(step, frame, attended, final, prompts, verdict)
        self._follow(final, survey, attended.rows, verdict, plan.yields, detector_ran)
        low = self._outcome(plan, ids, prompts, final, det_logits, evidence, verdict)
        self._bury_and_bear(step, frame, plan, inside, survey, looks)
        pending = bool(path.pending.any())
        self.hidden, self._vision = (hidden, frame.computed) if pending else (None, None)
        return low, plan

    def _outlook(self, found: Detections, survey: _Survey, detector_ran: bool) -> Outlook:
        """From the detections and, after them in ``survey``, every object's last mask where it is expected."""
        path, n = self.trajectories, len(found)
        box = survey.box[:n].astype(np.float64)
        return Outlook(
            det_score=found.score,
            det_prompt=found.prompt_id,
            det_centre=(box[:, :2] + box[:, 2:]) / 2,
            det_extent=extents(box),
            det_area=survey.area[:n].astype(np.float64),
            prompt=self._lifecycle.prompt_ids,
            centre=path.centre,
            last_centre=(path.box[:, :2] + path.box[:, 2:]) / 2,
            extent=path.extent,
            area=path.area,
            last_extent=extents(path.box),
            last_area=survey.area[n:].astype(np.float64),
            iou=survey.iou[:n, n:],
            rival_iou=survey.iou[n:, n:].copy(),
            likeness=survey.likeness[:n],
            resemblance=survey.resemblance,
            unseen=path.unseen.copy(),
            skipped=path.skipped.copy(),
            since_attention=path.since_attention.copy(),
            detector_ran=detector_ran,
        )

    def _survey(self, inside: Tensor, looks: FrameLooks) -> _Survey:
        """One transfer to the host."""
        count, num_rows = len(inside), len(self.trajectories)
        likeness = inside.new_zeros((count + num_rows, num_rows), dtype=torch.float32)
        described = likeness[:count, :0]
        if num_rows:
            described, known = looks.describe(inside), self._gallery.looks
            likeness = torch.cat([described, known]) @ known.T
        tables = mask_iou(inside, inside), boxes(inside), inside.flatten(1).sum(1), likeness
        flat = download(torch.cat([table.float().flatten() for table in tables]), self._meanwhile)
        ends = np.cumsum([table.numel() for table in tables])[:-1]
        iou, box, area, like = (
            part.reshape(table.shape) for part, table in zip(np.split(flat, ends), tables, strict=True)
        )
        return _Survey(iou, box, area, like[:count], like[count:], described)

    def _attend(self, step: int, frame: _Frame, rows: Int64Array) -> _Attended:
        """Memory attention for ``rows``, after writing what they have pending."""
        if len(rows) == 0:
            return _Attended(rows, self._heads.nothing(), np.zeros(0, np.float32), np.zeros(0, bool))
        self._write_pending(step, rows[self.trajectories.pending[rows] > 0])
        found = self._heads.propagate(frame.vision, self._bank, step, rows)
        finite = found.logits.flatten(1).isfinite().all(1) & found.object_logit.isfinite()
        finite &= found.pointer.isfinite().all(1)
        found = replace(found, logits=filled(found.logits, self._config.fill_hole_area_px))
        table = download(torch.stack([found.object_logit, finite.float()]), self._meanwhile)
        return _Attended(rows, found, table[0], table[1] > 0)

    def _write_pending(self, step: int, rows: Int64Array) -> None:
        """Memory of the frame before, from its masks."""
        if len(rows) == 0:
            return
        assert self.hidden is not None  # kept as long as anything is pending
        vision = self._vision or self._heads.vision(self.hidden)
        self._vision = vision
        memory, pointer = self._heads.begin(vision, self.masks[upload(rows, self.masks.device)])
        self._bank.write(step - 1, memory, pointer, np.ones(len(rows), bool), rows)
        self.trajectories.pending[rows] = 0

    def _final(self, det_logits: Tensor, attended: _Attended, shows: Int64Array) -> Tensor:
        """``(M, h, w)`` logits of every object's mask on this frame."""
        nobody = det_logits.new_full((1, *self._heads.mask_size), NO_OBJECT_LOGIT, dtype=torch.float32)
        candidates = torch.cat([det_logits.float(), attended.found.logits, nobody])
        return candidates[upload(shows, candidates.device)]

    def _evidence(
        self, found: Detections, attended: _Attended, survey: _Survey, shows: Int64Array, detector_ran: bool
    ) -> Evidence:
        """As the lifecycle wants it: about the masks that are shown."""
        n, count = len(found), len(survey.box)
        padded = np.zeros((count + 1, count + 1), np.float32)
        padded[:count, :count] = survey.iou
        probability = np.clip(found.score.astype(np.float64), 1e-6, 1 - 1e-6)
        logit = np.concatenate([np.log(probability / (1 - probability)), attended.object_logit, [NO_OBJECT_LOGIT]])
        finite = np.ones(len(shows), bool)
        finite[attended.rows] = attended.is_finite
        return Evidence(
            det_score=found.score,
            det_prompt=found.prompt_id,
            det_iou=padded[:n][:, shows],
            track_iou=padded[np.ix_(shows, shows)],
            object_logit=logit[shows].astype(np.float32),
            is_empty=shows < 0,
            is_finite=finite,
            detector_ran=detector_ran,
        )

    def _matches(self, found: Detections, evidence: Evidence, verdict: Verdict, detector_ran: bool) -> Association:
        """One to one; a detection that nobody claims and that lies on nobody starts an object."""
        n, prompt, claimed = len(found), self._lifecycle.prompt_ids, verdict.claimed
        same = found.prompt_id[:, None] == prompt[None]
        taken = np.isin(np.arange(n), claimed)
        lies_on = ((evidence.det_iou >= self._config.match_iou) & same).any(1)
        is_new = (found.score >= self._config.new_object_score) & ~taken & ~lies_on & ~verdict.in_place
        is_new &= ~verdict.merges.any(1)
        return Association(is_new, np.arange(n)[:, None] == claimed[None], (claimed < 0) & detector_ran, claimed)

    def _count(self, verdict: Verdict) -> None:
        slept, rested = (int((verdict.reason == reason).sum()) for reason in (Reason.SLEEPS, Reason.RESTS))
        counts = {
            "attended": len(verdict.reason) - slept - rested,
            "rested": rested,
            "slept": slept,
            "recovered": int(((self.trajectories.unseen > 0) & (verdict.claimed >= 0)).sum()),
        }
        self.counters.update({name: count for name, count in counts.items() if count})

    def _remember(
        self,
        step: int,
        frame: _Frame,
        attended: _Attended,
        final: Tensor,
        prompts: Int16Array,
        verdict: Verdict,
    ) -> None:
        """Write what attention agrees with or found alone; note what has to wait; leave out what is not credible."""
        attends, absent = np.zeros((2, len(prompts)), bool)
        attends[attended.rows], absent[attended.rows] = True, attended.object_logit <= 0
        alone = (verdict.claimed < 0) & ((verdict.shows >= 0) | absent)
        self.trajectories.pending[:] = (verdict.claimed >= 0) & ~verdict.agrees
        chosen = np.flatnonzero(attends & (verdict.agrees | alone))
        if len(chosen) == 0:
            return
        logits = final[upload(chosen, final.device)]
        if self._config.non_overlapping_memory:
            logits = clear_shrunk(logits, prompts[chosen])
        of = upload(np.searchsorted(attended.rows, chosen), final.device)
        memory = self._heads.remember(frame.vision, logits)
        self._bank.write(step, memory, attended.found.pointer[of], verdict.is_plain[chosen], chosen)

    def _follow(
        self,
        final: Tensor,
        survey: _Survey,
        attended: Int64Array,
        verdict: Verdict,
        yields: BoolArray,
        detector_ran: bool,
    ) -> None:
        """Place, look and clocks after this frame."""
        path, shows = self.trajectories, verdict.shows
        seen = np.flatnonzero(shows >= 0)
        box, area = survey.measured(shows[seen])
        in_company = verdict.merges.any(0) & (shows >= 0)
        path.see(seen, box, area, verdict.is_plain[seen], np.where(in_company, _COMPANY_DOUBT, 0)[seen])
        path.unseen = np.where(verdict.claimed >= 0, 0, path.unseen + (detector_ran & ~in_company))
        path.skipped[verdict.claimed >= 0] = 0
        path.since_attention += 1
        path.since_attention[attended] = 0
        if len(final) == 0:
            return
        shown, plain = (upload(rows, final.device) for rows in (shows >= 0, verdict.is_plain))
        self.masks = torch.where(shown[:, None, None], final > 0, self.masks)
        looks = F.pad(survey.looks, (0, 0, 0, 1))  # the last row: nothing is seen, which changes nothing
        index = upload(np.where(yields, -1, shows), final.device)
        self._gallery.see(looks[index], plain)

    def _outcome(
        self,
        plan: UpdatePlan,
        ids: Int64Array,
        prompts: Int16Array,
        final: Tensor,
        det_logits: Tensor,
        evidence: Evidence,
        verdict: Verdict,
    ) -> LowResTracks:
        """Survivors that are seen, then newcomers with their detection's mask."""
        rows = np.flatnonzero(plan.keeps & ~plan.hidden & (verdict.shows >= 0))
        score = 1 / (1 + np.exp(-evidence.object_logit[rows].astype(np.float64)))
        at = upload(rows, final.device)
        return LowResTracks(
            np.concatenate([ids[rows], plan.new_ids]),
            np.concatenate([prompts[rows], evidence.det_prompt[plan.new]]),
            np.concatenate([score, evidence.det_score[plan.new]]).astype(np.float32),
            torch.cat([final[at], det_logits[upload(plan.new, final.device)].float()]),
            ids[plan.withdrawn],
            np.concatenate([verdict.reason[rows], np.full(len(plan.new), Reason.RESTS, np.int64)]),
        )

    def _bury_and_bear(
        self, step: int, frame: _Frame, plan: UpdatePlan, inside: Tensor, survey: _Survey, looks: FrameLooks
    ) -> None:
        """The withdrawn, the broken and the long lost go; newcomers join."""
        ended = plan.keeps & (self.trajectories.unseen > self._config.lost_frames)
        if ended.any():
            survivors = self._lifecycle.track_ids[: int(plan.keeps.sum())]
            self._lifecycle.forget(survivors[ended[plan.keeps]])
            self.counters["ended"] += int(ended.sum())
        stays = plan.keeps & ~ended
        self._bank.keep(stays)
        self._gallery.keep(stays)
        self.keep(stays)
        if len(plan.new):
            masks = inside[upload(plan.new, inside.device)]
            self._bank.append(step, *self._heads.begin(frame.vision, masks))
            self._gallery.append(looks.describe(masks))
            # Whoever starts together is not refreshed together.
            since = plan.new_ids % self._config.refresh_every_frames
            self.trajectories.append(Trajectories.begin(*survey.measured(plan.new), since))
            self.masks = torch.cat([self.masks, masks])


class _Frame:
    """One frame's features; the neck runs when somebody first asks."""

    def __init__(self, hidden: Tensor, heads: SamHeads) -> None:
        self._hidden, self._heads = hidden, heads
        self.computed: Vision | None = None

    @property
    def vision(self) -> Vision:
        """What the heads read."""
        if self.computed is None:
            self.computed = self._heads.vision(self._hidden)
        return self.computed
