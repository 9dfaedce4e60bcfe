"""``segment()`` on images: kinds of input, text and boxes per image, and transformers' post-processing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Sam3ImageProcessor, Sam3LiteTextModel
from transformers.utils import logging as transformers_logging

import pipeline
from configs.schema import ModelConfig
from pipeline import segmentation
from pipeline.checkpoints import Checkpoint, open_checkpoint
from pipeline.errors import ModelError, SourceError, UsageError
from pipeline.segmentation import ImageResult, segment
from tests import tinyconf

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()

RED = (220, 30, 30)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small random model."""
    config = tinyconf.video_config(detector_width=32)
    state = tinyconf.video_state(config, 40)
    state["detector_model.dot_product_scoring.query_proj.weight"] *= 0.3
    return str(tinyconf.write_folder(tmp_path_factory.mktemp("model"), config, state))


def picture(seed: int, size: tuple[int, int] = (60, 100)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 80, (*size, 3), dtype=np.uint8)
    image[10:40, 20:70] = RED
    return image


def assert_same(a: ImageResult, b: ImageResult) -> None:
    np.testing.assert_allclose(a.score, b.score, atol=1e-5)
    np.testing.assert_allclose(a.xyxy, b.xyxy, atol=1e-2)
    assert a.masks.shape == b.masks.shape and (a.masks != b.masks).mean() < 1e-3
    assert a.prompt == b.prompt


def test_the_packages_function_stays_a_function() -> None:
    """A module of the same name would replace it on the second import."""
    assert all(callable(pipeline.segment) for _ in range(2))


def test_results_are_what_transformers_post_processes(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "DetectorConfig", lambda **v: plain_config(**v))
    segmentation._open.cache_clear()
    image, checkpoint = picture(1), open_checkpoint(ModelConfig(name=model))
    reference = Sam3LiteTextModel(checkpoint.config.detector_config)
    reference.load_state_dict(checkpoint.weights.read("detector_model."))
    processor = Sam3ImageProcessor(size={"height": 112, "width": 112})
    tokens = checkpoint.tokenizer("red ball", padding="max_length", max_length=32, return_tensors="pt")
    with torch.no_grad():
        pixels = processor(images=image, return_tensors="pt").pixel_values
        output = reference.eval()(pixel_values=pixels, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    score = (output.pred_logits.sigmoid() * output.presence_logits.sigmoid())[0]
    conf = float(score.sort().values[5:7].mean())
    want = processor.post_process_instance_segmentation(output, conf, target_sizes=[image.shape[:2]])[0]
    order = want["scores"].argsort(descending=True)
    [got] = segment(image, text="red ball", model=model, device="cpu", conf=conf)
    assert len(got) == len(order) == 6
    np.testing.assert_allclose(got.score, want["scores"][order].numpy(), atol=1e-4)
    expected_boxes = np.clip(want["boxes"][order].numpy(), 0, [100, 60, 100, 60])
    np.testing.assert_allclose(got.xyxy, expected_boxes, atol=1e-2)
    assert got.masks.dtype == bool and got.masks.shape == (6, 60, 100)
    assert (got.masks != want["masks"][order].bool().numpy()).mean() < 1e-3


def plain_config(**values: Any) -> Any:
    """The detector's configuration without what transformers' image model does not do."""
    from configs.schema import DetectorConfig

    return DetectorConfig(nms_iou=1.0, fill_hole_area_px=0, **values)


def test_paths_pil_and_arrays_are_the_same_image(model: str, tmp_path: Path) -> None:
    image = picture(2)
    upright = Image.fromarray(image)
    upright.save(tmp_path / "a.png")
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(image)))
    turned.getexif()[0x0112] = 6  # stored a quarter turn to the left; to be shown turned back
    turned.save(tmp_path / "b.png", exif=turned.getexif())
    given = [image, upright, upright.convert("RGBA"), tmp_path / "a.png", str(tmp_path / "b.png")]
    results = segment(given, text="red ball", model=model, device="cpu", conf=0.05)
    assert len(results) == 5 and len(results[0]) and results[0].masks.shape[1:] == (60, 100)
    for result in results[1:]:
        assert_same(result, results[0])


def test_a_batch_equals_its_images(model: str) -> None:
    images = [picture(3), picture(4, (90, 70))]
    both = segment(images, text=["red ball", "person"], model=model, device="cpu", conf=0.05)
    for image, result in zip(images, both, strict=True):
        assert_same(segment(image, text=["red ball", "person"], model=model, device="cpu", conf=0.05)[0], result)
    assert {p for r in both for p in r.prompt} == {"red ball", "person"}


def test_every_image_may_have_its_own_text_and_boxes(model: str) -> None:
    """Mixed prompts as transformers documents them: text on one image, a box on another."""
    a, b = picture(5), picture(6, (90, 70))
    options: dict[str, Any] = {"model": model, "device": "cpu", "conf": 0.05}
    mixed = segment([a, b], text=[["person"], None], boxes=[None, [[5, 5, 40, 50]]], **options)
    assert_same(mixed[0], segment(a, text="person", **options)[0])
    assert_same(mixed[1], segment(b, boxes=[[5, 5, 40, 50]], **options)[0])
    assert set(mixed[1].prompt) == {"visual"}


def test_negative_boxes_are_not_positive_ones(model: str) -> None:
    options: dict[str, Any] = {
        "text": "red ball",
        "boxes": [[20, 10, 70, 40]],
        "model": model,
        "device": "cpu",
        "conf": 0.0,
    }
    like, default = (segment(picture(7), **options, **more)[0] for more in ({"box_labels": [1]}, {}))
    unlike = segment(picture(7), **options, box_labels=[0])[0]
    assert_same(like, default)
    assert len(like) != len(unlike) or np.abs(np.sort(like.score) - np.sort(unlike.score)).max() > 1e-3


def test_boxes_may_be_nested_per_image_or_arrays(model: str) -> None:
    options: dict[str, Any] = {"model": model, "device": "cpu", "conf": 0.05}
    flat = segment(picture(8), boxes=[[5, 5, 40, 50], [50, 20, 90, 50]], box_labels=[1, 0], **options)[0]
    nested = segment([picture(8)], boxes=[[[5, 5, 40, 50], [50, 20, 90, 50]]], box_labels=[[1, 0]], **options)[0]
    array = np.array([[5, 5, 40, 50], [50, 20, 90, 50]], np.float32)
    assert_same(nested, flat)
    assert_same(segment(picture(8), boxes=array, box_labels=[1, 0], **options)[0], flat)  # type: ignore[arg-type]


def test_the_model_is_loaded_once_for_a_loop(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load = Checkpoint.load_detector

    def counted(self: Checkpoint, *args: Any) -> Any:
        loads.append(self.name)
        return load(self, *args)

    monkeypatch.setattr(Checkpoint, "load_detector", counted)
    segmentation._open.cache_clear()
    for seed in range(3):
        segment(picture(seed), text="person", model=model, device="cpu")
    assert len(loads) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to look for"),
        ({"text": " "}, "a phrase is empty"),
        ({"text": [["a"], ["b"]]}, "2 lists of phrases for 1 images"),
        ({"boxes": [[[0, 0, 5, 5]], [[0, 0, 5, 5]]]}, "2 images for 1 images"),
        ({"boxes": [[0, 0, 5, 5]], "box_labels": [1, 0]}, "2 labels for 1 boxes"),
        ({"boxes": [[80, 10, 200, 40], [101, 0, 120, 9]]}, "no area inside the frame"),
    ],
)
def test_wrong_use(model: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        segment(picture(9), model=model, device="cpu", **options)


def test_images_that_cannot_be_read(model: str, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG garbage")
    for path in (tmp_path / "missing.png", tmp_path / "bad.png"):
        with pytest.raises(SourceError, match="cannot be read"):
            segment(path, text="person", model=model, device="cpu")
    with pytest.raises(UsageError, match="must be uint8"):
        segment(picture(9).astype(np.float32), text="person", model=model, device="cpu")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="unknown model"):
        segment(picture(9), text="person", model="nope", device="cpu")


def test_no_images_give_no_results(model: str) -> None:
    assert segment([], text="person", model=model, device="cpu") == []
