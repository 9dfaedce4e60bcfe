"""Transformers' ``Sam3VideoModel`` and our pipeline on one model, one scene and the same frames.

Both pay for all of their compute: every network runs in full on every frame, then the *values* of detections and of
propagated masks are replaced by those of :mod:`pipeline.bench_scene`. What a network said before is kept, so that the
two can be compared.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Sam3LiteTextConfig, Sam3TrackerVideoConfig, Sam3VideoConfig, Sam3VideoModel
from transformers.models.sam3_video.modeling_sam3_video import Sam3VideoInferenceSession

from pipeline.bench import Subject
from pipeline.bench_scene import DETECTED, IN_PICTURE, Scene, Stopwatch
from pipeline.detectors.sam3_litetext import to_pixels
from pipeline.types import Frame
from trackers.sam_heads import Decoded

PATCH_PX, WIDTH, FF = 14, 128, 128
PARTS = {
    "get_vision_features_for_tracker": "neck",
    "run_detection": "detection",
    "run_tracker_propagation": "attention",
    "_tracker_update_memories": "memory",
    "_det_track_one_frame": "plan",
}
"""Methods of the reference by the part of the work they are, in the words of ``masklet bench``."""


def tiny_config(image_size: int, queries: int) -> Sam3VideoConfig:
    """All parts of SAM3-LiteText and its tracker, small: four ViT layers, two of each transformer."""
    grid = image_size // PATCH_PX
    block = {"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": FF}
    vision = {
        "model_type": "sam3_vision_model",
        "fpn_hidden_size": WIDTH,
        "backbone_feature_sizes": [[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": image_size,
            "patch_size": PATCH_PX,
            "window_size": 8,
            "global_attn_indexes": [1, 3],
            "pretrain_image_size": 8 * PATCH_PX,
        },
    }
    text = {
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "projection_dim": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
    }
    detector = Sam3LiteTextConfig(
        vision_config=vision,
        text_config=text,
        geometry_encoder_config={**block, "num_layers": 1},
        detr_encoder_config={**block, "num_layers": 2},
        detr_decoder_config={**block, "num_layers": 2, "num_queries": queries},
        mask_decoder_config={"hidden_size": WIDTH, "num_attention_heads": 4},
    )
    tracker = Sam3TrackerVideoConfig(
        image_size=image_size,
        vision_config=vision,
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": image_size, "patch_size": PATCH_PX},
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": FF,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": WIDTH,
        },
        memory_attention_hidden_size=WIDTH,
        memory_attention_num_layers=2,
        memory_attention_feed_forward_hidden_size=FF,
        memory_encoder_hidden_size=WIDTH,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=WIDTH,
        memory_fuser_embed_dim=WIDTH,
        memory_fuser_intermediate_dim=FF,
    )
    return Sam3VideoConfig(detector_config=detector, tracker_config=tracker, low_res_mask_size=4 * grid)


def full_config() -> Sam3VideoConfig:
    """SAM3-LiteText S0 with SAM3's tracker: 1008 px, transformers' defaults."""
    return Sam3VideoConfig(detector_config=Sam3LiteTextConfig(), tracker_config=Sam3TrackerVideoConfig())


def random_model(config: Sam3VideoConfig, device: torch.device, dtype: torch.dtype) -> Sam3VideoModel:
    """Seeded random weights that believe every object to be in the picture: else there are no masks to compare."""
    torch.manual_seed(0)
    with torch.device(device):
        model: Sam3VideoModel = Sam3VideoModel(config)
    model.to(device, dtype).eval().requires_grad_(False)
    model.tracker_model.mask_decoder.pred_obj_score_head.proj_out.bias += 2
    return model


@dataclass(frozen=True)
class InMemory:
    """A model that is loaded already, as a checkpoint: what our detector and tracker are built from."""

    model: Sam3VideoModel

    @property
    def config(self) -> Sam3VideoConfig:
        """Of the whole model."""
        return self.model.config

    @property
    def image_size(self) -> int:
        """Side of the square input, pixels."""
        return int(self.config.image_size)

    @property
    def low_res_size(self) -> int:
        """Side of the low-resolution masks, pixels."""
        return int(self.config.low_res_mask_size)

    def load_detector(self, device: Any, dtype: torch.dtype) -> Any:
        """A copy of all but the image encoder: our detector keeps some layers in float32."""
        detector = self.model.detector_model
        shared = {id(p): p for p in detector.vision_encoder.parameters()}
        return copy.deepcopy(detector, dict(shared))

    def load_tracker(self, device: Any, dtype: torch.dtype) -> Any:
        """The tracker's neck and networks themselves."""
        return SimpleNamespace(neck=self.model.tracker_neck, model=self.model.tracker_model)


class Reference:
    """The reference on a scene, frame by frame. Leaving it gives the model its methods back.

    Args:
        model: with seeded weights; NMS and hole filling are off, as they are without the ``kernels`` package.
        scene: what is found.
        num_frames: length of the video; its 16 different pictures are shared between the frames.
        watch: counts the parts while it is on.
    """

    def __init__(self, model: Sam3VideoModel, scene: Scene, num_frames: int, watch: Stopwatch) -> None:
        logging.getLogger("transformers").setLevel(logging.ERROR)
        self.model, self.scene, self.watch = model, scene, watch
        self._side = int(model.config.image_size)
        device, dtype = model.device, model.dtype
        pictures = to_pixels([scene.picture(t, self._side) for t in range(16)], self._side, device).to(dtype)
        self.session = Sam3VideoInferenceSession(
            video_height=self._side,
            video_width=self._side,
            dtype=dtype,
            inference_device=device,
            inference_state_device=device,
            video_storage_device=device,
        )
        self.session.processed_frames = {t: pictures[t % 16] for t in range(num_frames)}
        self.session.obj_with_new_inputs = []
        self._phrases()
        self.next_frame = 0
        self.raw = torch.zeros(0)
        """Mask logits ``(K, h, w)`` that the networks gave on the latest frame."""
        self._install()

    def _phrases(self) -> None:
        generator = torch.Generator().manual_seed(1)
        vocabulary = self.model.config.detector_config.text_config.vocab_size
        for number in range(self.scene.prompts):
            key = self.session.add_prompt(f"phrase {number}")
            ids = torch.randint(1, vocabulary, (1, 32), generator=generator)
            self.session.prompt_input_ids[key] = ids.to(self.model.device)
            self.session.prompt_attention_masks[key] = torch.ones_like(self.session.prompt_input_ids[key])

    def _install(self) -> None:
        model, scene = self.model, self.scene
        detection, propagation = model.run_detection, model.run_tracker_propagation

        def forced_detection(inference_session: Any, vision_embeds: Any) -> dict[int, dict[str, Tensor]]:
            found: dict[int, dict[str, Tensor]] = detection(inference_session, vision_embeds)
            logits = scene.logits_on(self.next_frame, vision_embeds.last_hidden_state)
            for prompt, out in found.items():
                rows = logits[torch.from_numpy(scene.prompt_id == prompt)]
                out.update(
                    bbox=out["bbox"].new_zeros(len(rows), 4),
                    mask=rows,
                    scores=out["scores"].new_full((len(rows),), DETECTED),
                )
            return found

        def forced_propagation(inference_session: Any, frame_idx: int, reverse: bool) -> tuple[Tensor, Tensor]:
            logits, scores = propagation(inference_session=inference_session, frame_idx=frame_idx, reverse=reverse)
            if not len(inference_session.obj_ids):
                return logits, scores
            self.raw = logits
            return scene.logits_on(frame_idx, logits).clone(), torch.full_like(scores, IN_PICTURE)

        model.run_detection, model.run_tracker_propagation = forced_detection, forced_propagation
        for method, part in PARTS.items():
            self.watch.wrap(model, method, part)
        self.watch.wrap(model.detector_model, "get_vision_features", "image encoder")

    def close(self) -> None:
        """Undo what was replaced."""
        for method in PARTS:
            delattr(self.model, method)
        del self.model.detector_model.get_vision_features

    def advance(self, count: int) -> list[dict[int, Tensor]]:
        """Track the next ``count`` frames; low-resolution mask logits by object id from 0."""
        done = []
        for _ in range(count):
            out = self.model(inference_session=self.session, frame_idx=self.next_frame)
            assert out.object_ids == list(range(self.scene.objects)), "the reference lost an object of the scene"
            done.append({i: mask[0] for i, mask in out.obj_id_to_mask.items()})
            self.next_frame += 1
        return done

    def pretend(self, until: int) -> None:
        """Have the history of a session at frame ``until``, without computing it.

        For every frame in between, each object gets the entries that the reference's own code stores, of the same
        kinds (conditioning on every 16th frame) and sizes, but sharing the tensors of the latest real frames: a real
        session of 3,000 frames and 16 objects holds 12 GB at 224 px. What is computed from then on is the same.
        """
        session, every = self.session, self.model.recondition_every_nth_frame
        now = self.next_frame
        assert now > every, "a reconditioned frame is needed as a pattern"
        cond, plain = (now - 1) // every * every, now - 1
        cond_scores, plain_scores = (session.obj_id_to_tracker_score_frame_wise[t] for t in (cond, plain))
        assert plain != cond
        for t in range(now, until):
            is_cond = t % every == 0
            kind, pattern = ("cond_frame_outputs", cond) if is_cond else ("non_cond_frame_outputs", plain)
            for outputs, tracked in zip(
                session.output_dict_per_obj.values(), session.frames_tracked_per_obj.values(), strict=True
            ):
                outputs[kind][t] = dict(outputs[kind][pattern])
                tracked[t] = {"reverse": False}
            session.obj_id_to_tracker_score_frame_wise[t] = dict(cond_scores if is_cond else plain_scores)
            session.suppressed_obj_ids[t] = set()
        self.next_frame = until

    def num_state_bytes(self) -> int:
        """Bytes of the distinct tensors that the session holds of its objects."""
        return unique_bytes([list(o.values()) for o in self.session.output_dict_per_obj.values()])

    def signature(self) -> dict[str, Any]:
        """What is stored, by kind: to check that :meth:`pretend` stores it alike."""
        session = self.session
        return {
            "outputs": {
                (i, kind, t): {name: _kind(value) for name, value in entry.items()}
                for i, outputs in session.output_dict_per_obj.items()
                for kind, frames in outputs.items()
                for t, entry in frames.items()
            },
            "tracked": {i: dict(frames) for i, frames in session.frames_tracked_per_obj.items()},
            "scores": {t: sorted(s) for t, s in session.obj_id_to_tracker_score_frame_wise.items()},
            "suppressed": {t: set(s) for t, s in session.suppressed_obj_ids.items()},
            "unmatched": {i: list(f) for i, f in session.unmatched_frame_inds.items()},
            "overlaps": {i: list(f) for i, f in session.overlap_pair_to_frame_inds.items()},
            "keep alive": dict(session.trk_keep_alive),
            "first": dict(session.obj_first_frame_idx),
            "hidden": dict(session.obj_id_to_last_occluded),
        }


def _kind(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else type(value).__name__


def unique_bytes(root: Any) -> int:
    """Bytes of the distinct tensor storages in nested dicts and lists."""
    seen: dict[int, int] = {}
    todo = [root]
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            todo.extend(value.values())
        elif isinstance(value, (list, tuple)):
            todo.extend(value)
    return sum(seen.values())


@torch.inference_mode()
def pretend_ours(subject: Subject, until: int) -> None:
    """Bring our tracker to frame ``until`` with idle networks; its plans and its memory bank run for real.

    In place of every network's answer that of one real frame is repeated, so what fills the memories is real too.
    """
    tracker, scene = subject.tracker, subject.scene
    heads, features = tracker._heads, tracker._features
    names = ("vision", "propagate", "remember", "begin")
    real = {name: getattr(heads, name) for name in names}
    frame = subject.frame(subject.next_frame)
    hidden = features(frame)
    vision = heads.vision(hidden)
    decoded = heads.propagate(vision, tracker._bank, tracker._step)
    memory = heads.remember(vision, decoded.logits)

    def propagate(vision: Any, bank: Any, step: int, rows: Any = None) -> Decoded:
        at = np.arange(len(bank)) if rows is None else rows
        logits = torch.from_numpy(scene.logits(step)[at]).to(decoded.logits)
        return Decoded(logits, decoded.object_logit[at], decoded.pointer[at])

    idle = {
        "vision": lambda _: vision,
        "propagate": propagate,
        "remember": lambda _, logits: memory[: len(logits)],
        "begin": lambda _, masks: (memory[: len(masks)], decoded.pointer[: len(masks)]),
    }
    for name in names:
        setattr(heads, name, idle[name])
    tracker._features = lambda _: hidden
    for t in range(subject.next_frame, until):
        still = Frame(subject.name, t, t / 30, frame.image, frame.source_size)
        tracker.advance(still, scene.detections(t, frame.source_size))
    for name in names:
        setattr(heads, name, real[name])
    tracker._features = features
    subject.next_frame = until
