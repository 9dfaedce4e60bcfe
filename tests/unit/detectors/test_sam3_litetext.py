"""The detector against transformers' models on the same weights, and what it adds: batches, caches, vetoes, boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Sam3Config, Sam3ImageProcessor, Sam3LiteTextConfig, Sam3LiteTextModel
from transformers.models.sam3_lite_text.configuration_sam3_lite_text import Sam3LiteTextTextConfig
from transformers.models.sam3_video import modeling_sam3_video
from transformers.utils import logging as transformers_logging

from configs.schema import DetectorConfig, ModelConfig
from pipeline.checkpoints import open_checkpoint
from pipeline.detectors import sam3_litetext, sam3_network
from pipeline.detectors.sam3_litetext import FeatureCache, Sam3LiteTextDetector, to_pixels
from pipeline.errors import UsageError
from pipeline.torch_masks import fill_holes_and_islands, mask_iou
from pipeline.types import BoxPrompt, Detections, Detector, Frame, Prompts
from tests import tinyconf
from tests.unit.detectors.reference import PLAIN, Reference, frames, scores

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()

PHRASES = ["red cup", "person", "a blue car"]
TOLERANCE = 1e-4

CONFIGS: dict[str, Sam3LiteTextConfig | Sam3Config] = {
    "repmixer": tinyconf.litetext_config(),
    "plain text encoder": tinyconf.litetext_config(repmixer=False, queries=7),
    "77 positions": tinyconf.litetext_config(positions=77, width=64),
    "larger picture": tinyconf.litetext_config(image_size=168, width=32, queries=20),
    "uneven windows": tinyconf.litetext_config(image_size=140, width=48),
    "sam3": tinyconf.sam3_config(),
    "sam3, larger picture": tinyconf.sam3_config(image_size=168, width=64, queries=9),
}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(tinyconf.litetext_config(), 21)


def median_score(reference: Reference, some: list[Frame], phrases: list[str] = PHRASES) -> float:
    """A threshold that about half of all queries pass, in the widest gap between two scores there."""
    every = torch.cat([scores(reference(f, p)) for f in some for p in phrases]).sort().values
    middle = every[len(every) // 3 : -len(every) // 3]
    gap = int(middle.diff().argmax())
    return float(middle[gap : gap + 2].mean())


def raw(detector: Sam3LiteTextDetector, some: list[Frame], prompts: Prompts) -> tuple[Any, Tensor]:
    """Everything the network says of all (frame, phrase) pairs in one call, and all masks ``(pairs, Q, h, w)``."""
    network = detector._network
    num = len(prompts.phrases)
    pairs = torch.arange(len(some) * num)
    frame, phrase = pairs // num, pairs % num
    with torch.no_grad():
        states = torch.cat([detector.features(f) for f in some])
        text, mask = torch.from_numpy(prompts.embeddings)[phrase], torch.from_numpy(prompts.mask)[phrase]
        decoded = network.decode(network.coarse(states)[frame], text, mask)
        queries = decoded.logits.shape[1]
        masks = network.masks(
            states,
            frame,
            decoded,
            text,
            mask,
            pairs.repeat_interleave(queries),
            torch.arange(queries).repeat(len(pairs)),
        )
    return decoded, masks.unflatten(0, (len(pairs), queries))


def assert_raw_equal(reference: Reference, detector: Sam3LiteTextDetector, some: list[Frame]) -> None:
    decoded, masks = raw(detector, some, reference.prompts(PHRASES))
    expected = [reference(f, p) for f in some for p in PHRASES]
    for name, got in (
        ("pred_logits", decoded.logits),
        ("pred_boxes", decoded.boxes),
        ("presence_logits", decoded.presence),
    ):
        want = torch.cat([getattr(e, name) for e in expected])
        torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)
    want = torch.cat([e.pred_masks for e in expected])
    torch.testing.assert_close(masks, want, atol=TOLERANCE, rtol=0)
    assert want.std() > 0.1 and decoded.logits.std() > 0.01  # the comparison is not between constants


@pytest.mark.parametrize("name", CONFIGS)
def test_all_phrases_of_all_frames_at_once_equal_transformers_one_by_one(name: str) -> None:
    reference = Reference(CONFIGS[name], 7 + list(CONFIGS).index(name))
    assert_raw_equal(reference, reference.detector(), frames(3, 2))


def test_the_packaged_model_equals_transformers() -> None:
    checkpoint = open_checkpoint(ModelConfig())
    reference = Reference(checkpoint.config.detector_config, 0)
    reference.model = Sam3LiteTextModel.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    reference.processor.tokenizer = checkpoint.tokenizer
    prompts = checkpoint.encode(PHRASES)
    some = frames(5, 2)
    decoded, masks = raw(Sam3LiteTextDetector(checkpoint, DetectorConfig()), some, prompts)
    for row, (frame, phrase) in enumerate((f, p) for f in some for p in PHRASES):
        expected = reference(frame, phrase)
        torch.testing.assert_close(decoded.logits[row], expected.pred_logits[0], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(decoded.boxes[row], expected.pred_boxes[0], atol=TOLERANCE, rtol=0)
        # Learned mask logits reach tens, where float32 rounding of another batch is above the tolerance for units.
        torch.testing.assert_close(masks[row], expected.pred_masks[0], atol=TOLERANCE, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_full_size_s0_equals_transformers() -> None:
    """1008 px, random weights: about 4 GB and two minutes of one core."""
    text = Sam3LiteTextTextConfig(num_hidden_layers=6, max_position_embeddings=16)
    reference = Reference(Sam3LiteTextConfig(text_config=text), 1)
    assert sum(p.numel() for p in reference.model.text_encoder.parameters()) + 512 * 256 + 256 == 42_541_312
    some = frames(3, 1, (720, 1280))
    decoded, masks = raw(reference.detector(), some, reference.prompts(PHRASES[:1]))
    expected = reference(some[0], PHRASES[0])
    assert masks.shape == (1, 200, 288, 288)
    torch.testing.assert_close(decoded.logits, expected.pred_logits, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(decoded.boxes, expected.pred_boxes, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(masks, expected.pred_masks, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("size", [(90, 160), (112, 112), (113, 47), (700, 500), (1, 3)])
def test_pixels_equal_the_processors(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    processor = Sam3ImageProcessor(size={"height": 112, "width": 112})
    expected = processor(images=image, input_data_format="channels_last", return_tensors="pt").pixel_values
    assert torch.equal(to_pixels([image], 112, "cpu"), expected)


def expected_detections(
    reference: Reference, frame: Frame, phrases: list[str], threshold: float
) -> list[tuple[float, int, Any, Any]]:
    """Score, phrase, box and mask of all queries above the threshold, as transformers post-processes, best first."""
    found = []
    for number, phrase in enumerate(phrases):
        output = reference(frame, phrase)
        boxes = reference.processor.post_process_object_detection(output, threshold, [frame.source_size])[0]["boxes"]
        kept = scores(output) > threshold
        rows = zip(scores(output)[kept].tolist(), boxes.numpy(), output.pred_masks[0, kept].numpy(), strict=True)
        found += [(s, number, b, m) for s, b, m in rows]
    return sorted(found, key=lambda row: -row[0])


def test_detections_are_what_the_processor_reports(reference: Reference) -> None:
    some = frames(11, 3)
    threshold = median_score(reference, some)
    got = reference.detector(score_threshold=threshold, **PLAIN).detect(some, reference.prompts(PHRASES))
    assert sum(map(len, got)) >= 10
    for frame, found in zip(some, got, strict=True):
        want = expected_detections(reference, frame, PHRASES, threshold)
        height, width = frame.source_size
        np.testing.assert_allclose(found.score, [w[0] for w in want], atol=TOLERANCE)
        np.testing.assert_array_equal(found.prompt_id, [w[1] for w in want])
        clipped = np.clip([w[2] for w in want], 0, [width, height, width, height])
        np.testing.assert_allclose(found.xyxy, clipped, atol=TOLERANCE * width)
        np.testing.assert_allclose(found.mask_logits, [w[3] for w in want], atol=TOLERANCE)


def test_suppression_keeps_what_the_video_model_keeps(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' ``nms_masks``, with its Hub kernel replaced by the loop that the kernel's authors test against."""

    class Kernel:
        @staticmethod
        def generic_nms(ious: Tensor, probs: Tensor, threshold: float, use_iou_matrix: bool) -> Tensor:
            order, kept = probs.argsort(descending=True).tolist(), []
            while order:
                best = order.pop(0)
                kept.append(best)
                order = [j for j in order if ious[best, j] <= threshold]
            return torch.tensor(kept)

    monkeypatch.setattr(modeling_sam3_video, "cv_utils_kernel", Kernel)
    some = frames(12, 2)
    threshold = median_score(reference, some)
    detector = reference.detector(score_threshold=threshold, nms_iou=0.6, fill_hole_area_px=0)
    dropped = 0
    for frame, found in zip(some, detector.detect(some, reference.prompts(PHRASES)), strict=True):
        want: list[float] = []
        for phrase in PHRASES:
            output = reference(frame, phrase)
            keep = modeling_sam3_video.nms_masks(scores(output), output.pred_masks[0], threshold, 0.6)
            dropped += int((scores(output) > threshold).sum() - keep.sum())
            want += scores(output)[keep].tolist()
        np.testing.assert_allclose(found.score, sorted(want, reverse=True), atol=TOLERANCE)
    assert dropped > 3


def assert_same(a: list[Detections], b: list[Detections], atol: float = 1e-5) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x.score, y.score, atol=atol)
        np.testing.assert_array_equal(x.prompt_id, y.prompt_id)
        np.testing.assert_allclose(x.xyxy, y.xyxy, atol=atol * 200)
        np.testing.assert_allclose(x.mask_logits, y.mask_logits, atol=atol * 10)


def test_batching_changes_nothing(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    some, prompts = frames(13, 5), reference.prompts(PHRASES)
    values: dict[str, Any] = {"score_threshold": median_score(reference, some), **PLAIN}
    whole = reference.detector(batch_frames=5, **values).detect(some, prompts)
    assert_same(reference.detector(batch_frames=2, **values).detect(some, prompts), whole)
    monkeypatch.setattr(sam3_litetext, "_PAIRS_PER_CALL", 2)
    monkeypatch.setattr(sam3_network, "_MASK_PAIRS", 1)
    assert_same(reference.detector(batch_frames=4, **values).detect(some, prompts), whole)
    one_by_one = [reference.detector(batch_frames=4, **values).detect([f], prompts)[0] for f in some]
    assert_same(one_by_one, whole)


def test_frames_of_different_sizes_share_a_batch(reference: Reference) -> None:
    wide, small = frames(14, 1, (90, 160))[0], frames(15, 1, (300, 200), "other")[0]
    prompts = reference.prompts(PHRASES)
    detector = reference.detector(score_threshold=median_score(reference, [wide, small]), **PLAIN)
    together, apart = detector.detect([wide, small], prompts), [detector.detect([f], prompts)[0] for f in (wide, small)]
    assert_same(together, apart)
    assert (together[1].xyxy[:, 2] <= 200).all() and (together[1].xyxy[:, 3] <= 300).all()


def test_holes_are_filled_in_what_is_reported(reference: Reference) -> None:
    some, prompts = frames(16, 2), reference.prompts(PHRASES)
    values = {"score_threshold": median_score(reference, some), "nms_iou": 1.0}
    plain = reference.detector(fill_hole_area_px=0, **values).detect(some, prompts)
    # Given for 288 x 288 masks; here they are 32 x 32.
    filled = reference.detector(fill_hole_area_px=16 * 81, **values).detect(some, prompts)
    changed = 0
    for before, after in zip(plain, filled, strict=True):
        want = fill_holes_and_islands(torch.from_numpy(before.mask_logits), 16).numpy()
        np.testing.assert_array_equal(after.mask_logits, want)
        changed += int((want != before.mask_logits).sum())
    assert changed


def test_nothing_found_is_empty_with_the_masks_size(reference: Reference) -> None:
    found = reference.detector(score_threshold=1.0).detect(frames(17, 2), reference.prompts(PHRASES))
    assert [f.mask_logits.shape for f in found] == [(0, 32, 32)] * 2
    assert reference.detector().detect([], reference.prompts(PHRASES)) == []


def test_what_matches_a_veto_is_not_reported(reference: Reference) -> None:
    frame, values = frames(18, 1)[0], {"score_threshold": 0.0, **PLAIN}
    free = reference.detector(**values).detect([frame], reference.prompts(["person"]))[0]
    vetoes = reference.detector(**values).detect([frame], reference.prompts(["red cup"]))[0]
    iou = mask_iou(torch.from_numpy(free.mask_logits > 0), torch.from_numpy(vetoes.mask_logits > 0)).numpy()
    limit = float(np.median(iou.max(axis=1)))
    prompts = reference.prompts(["person"], ["red cup"])
    vetoed = reference.detector(**values, veto_iou=limit).detect([frame], prompts)[0]
    survive = iou.max(axis=1) < limit
    assert 0 < survive.sum() < len(free)
    assert_same([vetoed], [free[survive]])
    assert (vetoed.prompt_id == 0).all()


def count_encoder_frames(detector: Sam3LiteTextDetector) -> list[int]:
    """Grows by the number of frames of each call of the image encoder."""
    calls: list[int] = []
    detector._network.backbone.embeddings.register_forward_pre_hook(lambda _module, given: calls.append(len(given[0])))
    return calls


def test_features_are_the_encoders_and_are_computed_once(reference: Reference) -> None:
    fresh = Reference(tinyconf.litetext_config(), 22)
    some, detector = frames(19, 3), fresh.detector(batch_frames=3)
    with torch.no_grad():
        expected = fresh.model.vision_encoder(to_pixels([f.image for f in some], 112, "cpu")).last_hidden_state
    calls = count_encoder_frames(detector)
    detector.detect(some, fresh.prompts(["person"]))
    for row, frame in enumerate(some):
        torch.testing.assert_close(detector.features(frame), expected[row : row + 1], atol=1e-5, rtol=0)
    detector.detect(some[:2], fresh.prompts(["person"]))
    assert calls == [3]


def test_a_stream_that_starts_again_with_other_pictures_gets_new_features() -> None:
    first, second = frames(20, 1)[0], frames(21, 1)[0]
    cache = FeatureCache(4)
    cache.put(first, torch.ones(1))
    assert cache.get(second) is None
    same_pixels = Frame(first.stream_id, first.index, 9.0, first.image.copy(), first.source_size)
    assert cache.get(same_pixels) is not None


def test_the_cache_keeps_the_latest() -> None:
    cache, some = FeatureCache(2), frames(22, 3)
    for frame in some:
        cache.put(frame, torch.ones(1))
    assert [cache.get(f) is not None for f in some] == [False, True, True]
    assert len(cache) == 2


EXEMPLARS = [[20.0, 10.0, 60.0, 50.0], [70.0, 30.0, 150.0, 80.0]]


@pytest.mark.parametrize("labels", [[1, 1], [1, 0], [0, 0]])
@pytest.mark.parametrize("name", ["repmixer", "sam3"])
def test_boxes_on_their_own_frame_equal_transformers(name: str, labels: list[int]) -> None:
    reference, frame = Reference(CONFIGS[name], 31), frames(23, 1)[0]
    detector = reference.detector(score_threshold=0.0, **PLAIN)
    boxes = [BoxPrompt(0, (b[0], b[1], b[2], b[3]), bool(s)) for b, s in zip(EXEMPLARS, labels, strict=True)]
    decoded, masks = raw(detector, [frame], detector.encode_boxes(frame, boxes, reference.prompts(["visual"])))
    expected = reference(frame, "visual", EXEMPLARS, labels)
    torch.testing.assert_close(decoded.logits, expected.pred_logits, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(decoded.boxes, expected.pred_boxes, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(masks, expected.pred_masks, atol=TOLERANCE, rtol=0)
    without = reference(frame, "visual")
    assert (without.pred_logits - expected.pred_logits).abs().max() > 0.01


def test_boxes_speak_for_wanted_phrases_on_every_frame(reference: Reference) -> None:
    first, later = frames(24, 2)
    detector = reference.detector(**PLAIN)
    plain = reference.prompts(["person", "red cup"], ["car"])
    prompts = detector.encode_boxes(first, [BoxPrompt(0, (20, 10, 60, 50))], plain)
    assert (prompts.phrases, prompts.num_vetoes) == (plain.phrases, 1)
    assert prompts.mask[:, 32:].all(axis=1).tolist() == [True, True, False]
    decoded, _ = raw(detector, [later], prompts)
    for row in range(3):
        expected = reference.with_tokens(later, prompts.embeddings[row], prompts.mask[row])
        torch.testing.assert_close(decoded.logits[row], expected.pred_logits[0], atol=TOLERANCE, rtol=0)
    veto = reference.with_tokens(later, plain.embeddings[2], plain.mask[2])
    torch.testing.assert_close(decoded.logits[2], veto.pred_logits[0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([], "no exemplar box"),
        ([BoxPrompt(1, (0, 0, 5, 5))], "a box of frame 1"),
        ([BoxPrompt(0, (9, 9, 9, 20))], "has no area inside the frame"),
        ([BoxPrompt(0, (200, 10, 230, 20))], "has no area inside the frame"),
    ],
)
def test_boxes_that_say_nothing(reference: Reference, boxes: list[BoxPrompt], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        reference.detector().encode_boxes(frames(25, 1)[0], boxes, reference.prompts(["person"]))


def test_bfloat16_stays_close_and_reports_float32() -> None:
    exact, rounded = (Reference(tinyconf.litetext_config(), 33) for _ in range(2))
    some, prompts = frames(26, 2), exact.prompts(PHRASES)
    detector = rounded.detector(torch.bfloat16, score_threshold=0.0)
    close, masks = raw(detector, some, prompts)
    truth, _ = raw(exact.detector(), some, prompts)
    assert detector.features(some[0]).dtype == torch.bfloat16 and masks.dtype == torch.float32
    assert (close.boxes - truth.boxes).abs().max() < 0.05
    assert (close.score - truth.score).abs().max() < 0.1
    assert isinstance(detector, Detector) and len(detector.detect(some, prompts)[0])
