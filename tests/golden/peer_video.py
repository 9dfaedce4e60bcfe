"""Transformers' ``Sam3VideoModel`` as an outside reference for the memory tracker, one frame at a time.

``Peer(...).repair()`` corrects, in the reference, the faults in which Meta's original is followed instead:
ids shifted on removal, newcomers that re-encode everyone's memory, newcomers thresholded at 0.5, and pointers of all
conditioning frames instead of the selected ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import numpy as np
import torch
from transformers import Sam3VideoModel
from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession

from pipeline.types import Detections, Frame


@dataclass(frozen=True)
class PeerFrame:
    """What the reference saw and said on one frame."""

    hidden: torch.Tensor
    detections: Detections
    logits: dict[int, torch.Tensor]
    tracker_score: dict[int, float]
    live: list[int]
    removed: set[int]


Script = Callable[[int], tuple[torch.Tensor, list[float], list[int]]]
"""Frame -> detected mask logits ``(N, h, w)``, scores and prompt ids, sorted by prompt id."""
Blend = Callable[[int, list[int], torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Frame, object ids, propagated logits ``(M, h, w)`` and object logits ``(M,)`` -> what is taken for them."""


class Peer:
    """The reference on a video ``(T, 3, side, side)``; detections are its own or scripted."""

    def __init__(self, model: Sam3VideoModel, video: torch.Tensor, num_prompts: int, script: Script | None = None):
        self.model, self._video, self._script = model, video, script
        side = model.config.image_size
        self.session = Sam3VideoInferenceSession(video=video, video_height=side, video_width=side, dtype=torch.float32)
        self.session.obj_with_new_inputs = []
        generator = torch.Generator().manual_seed(num_prompts)
        for prompt in range(num_prompts):
            pid = self.session.add_prompt(f"phrase {prompt}")
            self.session.prompt_input_ids[pid] = torch.randint(3, 60, (1, 32), generator=generator)
            self.session.prompt_attention_masks[pid] = torch.ones(1, 32, dtype=torch.long)
        self._frame = 0
        self._hidden = torch.zeros(0)
        self._found: list[dict[int, dict[str, torch.Tensor]]] = []
        self._detect = model.run_detection
        model.run_detection = self._run_detection

    def _run_detection(self, inference_session: Any, vision_embeds: Any) -> dict[int, dict[str, torch.Tensor]]:
        self._hidden = vision_embeds.last_hidden_state
        found = self._scripted() if self._script else self._detect(inference_session, vision_embeds)
        self._found = [found]
        return found

    def _scripted(self) -> dict[int, dict[str, torch.Tensor]]:
        assert self._script is not None
        masks, scores, prompts = self._script(self._frame)
        found = {}
        for prompt in range(len(self.session.prompts)):
            rows = [i for i, p in enumerate(prompts) if p == prompt]
            found[prompt] = {
                "bbox": torch.zeros(len(rows), 4),
                "mask": masks[rows].clone(),
                "scores": torch.tensor([scores[i] for i in rows]),
            }
        return found

    def blend(self, mix: Blend) -> None:
        """Replace what is taken for the propagated masks by a mix of them and a scene."""
        inner = self.model.run_tracker_propagation

        def mixed(inference_session: Any, frame_idx: int, reverse: bool) -> Any:
            logits, scores = inner(inference_session=inference_session, frame_idx=frame_idx, reverse=reverse)
            if len(inference_session.obj_ids):
                logits, scores = mix(frame_idx, list(inference_session.obj_ids), logits, scores)
            return logits, scores

        self.model.run_tracker_propagation = mixed

    def frames(self) -> Any:
        """One :class:`PeerFrame` per frame."""
        for t in range(len(self._video)):
            self._frame = t
            out = self.model(inference_session=self.session, frame_idx=t)
            logits = {i: m[0].clone() for i, m in out.obj_id_to_mask.items()}
            yield PeerFrame(
                self._hidden.clone(),
                self._detections(),
                logits,
                dict(out.obj_id_to_tracker_score),
                list(out.object_ids),
                set(out.removed_obj_ids),
            )

    def _detections(self) -> Detections:
        found = self._found[0]
        masks = torch.cat([d["mask"] for d in found.values()]).float().numpy().copy()
        scores = torch.cat([d["scores"] for d in found.values()]).float().numpy().copy()
        prompts = np.array([p for p, d in found.items() for _ in range(len(d["scores"]))], np.int16)
        return Detections(np.zeros((len(scores), 4), np.float32), scores, prompts, masks)

    def repair(self) -> None:
        """Correct the reference's faults; see the module."""
        model = self.model
        model._tracker_add_new_objects = MethodType(_add_new_objects, model)
        execute = model.run_tracker_update_execution_phase

        def keep_ids(inference_session: Any, **kw: Any) -> None:
            before = list(inference_session.obj_ids)
            execute(inference_session=inference_session, **kw)
            inference_session.obj_ids = before  # the model's forward sets the new ids afterwards

        model.run_tracker_update_execution_phase = keep_ids
        tracker = model.tracker_model
        pointers = tracker._get_object_pointers

        def selected_pointers(inference_session: Any, obj_idx: int, frame_idx: int, *args: Any, **kw: Any) -> Any:
            outputs = inference_session.output_dict_per_obj[obj_idx]
            everything = dict(outputs["cond_frame_outputs"]), dict(outputs["non_cond_frame_outputs"])
            chosen, rest = tracker._select_closest_cond_frames(
                frame_idx, outputs["cond_frame_outputs"], tracker.config.max_cond_frame_num
            )
            outputs["cond_frame_outputs"] = dict(chosen)
            outputs["non_cond_frame_outputs"] = everything[1] | rest
            result = pointers(inference_session, obj_idx, frame_idx, *args, **kw)
            outputs["cond_frame_outputs"], outputs["non_cond_frame_outputs"] = everything
            return result

        tracker._get_object_pointers = selected_pointers


def _add_new_objects(
    self: Any, inference_session: Any, frame_idx: int, new_obj_ids: list[int], new_obj_masks: Any, reverse: bool = False
) -> None:
    """Only the new objects are run and encoded, from masks > 0."""
    tracker, rows, outputs = self.tracker_model, [], []
    for obj_id, mask in zip(new_obj_ids, new_obj_masks > 0, strict=True):
        obj_idx = inference_session.obj_id_to_idx(obj_id)
        rows.append(obj_idx)
        out = tracker._run_single_frame_inference(
            inference_session=inference_session,
            obj_idx=obj_idx,
            frame_idx=frame_idx,
            batch_size=1,
            is_init_cond_frame=True,
            point_inputs=None,
            mask_inputs=mask[None, None].float(),
            reverse=False,
        )
        inference_session.store_output(obj_idx, frame_idx, output_value=out, is_conditioning_frame=True)
        outputs.append(out)
    tracker._batch_encode_memories(
        inference_session=inference_session,
        frame_idx=frame_idx,
        objects_needing_memory_encoding=rows,
        high_res_masks_for_memory=[o["high_res_masks"] for o in outputs],
        object_score_logits_for_memory=[o["object_score_logits"] for o in outputs],
        is_mask_from_pts_per_obj=[True] * len(rows),
    )


def blank_frame(t: int, side: int) -> Frame:
    """A frame whose pixels nobody reads."""
    return Frame("clip", t, t / 24, np.zeros((2, 2, 3), np.uint8), (side, side))
