"""``masklet bench``: the scene is what it says, all work is done, and the command prints it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from configs.load import load_config
from configs.schema import Config
from pipeline import bench, cli
from pipeline.bench_scene import Scene, Stopwatch, synthetic_prompts
from pipeline.checkpoints import open_checkpoint
from pipeline.errors import UsageError


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(None, (), {"device": {"name": "cpu", "threads": 1}, "tracker": {"recondition_every_frames": 4}})


@pytest.fixture(scope="module")
def models(config: Config) -> bench.Models:
    return bench.load_models(open_checkpoint(config.model), config, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("objects", "prompts"), [(1, 1), (5, 2), (64, 4)])
def test_objects_of_a_scene_are_disjoint_and_matched_from_frame_to_frame(objects: int, prompts: int) -> None:
    scene = Scene(objects, prompts, 48)
    assert scene.fits()
    assert set(np.bincount(scene.prompt_id)) <= {objects // prompts, objects // prompts + 1}
    before, after = (scene.logits(t) > 0 for t in (3, 4))
    assert (before.sum(0) <= 1).all() and (after.sum(0) <= 1).all()
    overlap = (before & after).sum((1, 2)) / (before | after).sum((1, 2))
    assert (overlap > 0.3).all() and (overlap < 1).all()


def test_boxes_of_a_scene_enclose_its_masks() -> None:
    found = Scene(4, 1, 48).detections(4, (96, 192))
    for box, logits in zip(found.xyxy, found.mask_logits, strict=True):
        ys, xs = np.nonzero(logits > 0)
        assert box.tolist() == [4 * xs.min(), 2 * ys.min(), 4 * (xs.max() + 1), 2 * (ys.max() + 1)]


def test_exactly_these_objects_are_tracked_and_paid_for(models: bench.Models, config: Config) -> None:
    scene = Scene(5, 2, models.mask_side)
    embedded, encoded = [], []
    handle = models.detector._network._masks.mask_embedder.register_forward_hook(
        lambda _, x, y: embedded.append(len(y))
    )
    layer = models.detector._network.backbone.embeddings.register_forward_hook(
        lambda _, x, y: encoded.append(len(x[0]))
    )
    prompts = synthetic_prompts(2, models.text_width)
    watch = Stopwatch(lambda: 0.0)
    subject = bench.Subject(models.detector, models.parts, scene, prompts, config.tracker, 4, "a", watch)
    low = [low for _, low in subject.advance(6)]
    handle.remove()
    layer.remove()
    assert sum(encoded) == 6
    assert sum(embedded) == 6 * 5  # one mask per object and frame
    for t, tracks in enumerate(low):
        assert tracks.track_id.tolist() == [1, 2, 3, 4, 5]
        assert tracks.prompt_id.tolist() == [0, 0, 0, 1, 1]
        assert np.array_equal(tracks.logits.numpy() > 0, scene.logits(t) > 0)


def test_a_stopwatch_counts_parts_without_what_they_call() -> None:
    now = [0.0]
    watch = Stopwatch(lambda: now[0], is_on=True)

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    owner = SimpleNamespace(inner=lambda: pass_time(2))
    watch.wrap(owner, "inner", "inner")
    with watch.part("outer"):
        pass_time(1)
        owner.inner()
        pass_time(4)
    watch.is_on = False
    owner.inner()
    assert watch.seconds == {"outer": 5.0, "inner": 2.0}


def test_growth_of_memory_is_per_thousand_frames() -> None:
    assert bench.memory_slope_mb([100.0 + 0.5 * i for i in range(50)], 4) == pytest.approx(125)
    assert bench.memory_slope_mb([1.0, 2.0], 4) is None


def test_cases_without_an_object_for_every_phrase_are_left_out() -> None:
    assert bench.cases([1, 5], [1, 4]) == [(1, 1), (5, 1), (5, 4)]


def test_more_objects_than_there_is_room_for_are_refused(models: bench.Models, config: Config) -> None:
    with pytest.raises(UsageError, match="no room for 100000 objects"):
        bench.bench(models, config, [(100_000, 1)], 8)


def test_the_command_prints_a_row_per_case_and_mode(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def call(*args: str) -> tuple[int, Any]:
        monkeypatch.setattr(sys, "argv", ["masklet", "bench", *args, "--frames", "16", "--device", "cpu"])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), capsys.readouterr()

    code, shown = call("--objects", "2,3", "--prompts", "1,3", "--json", "--set", "device.threads=1")
    assert code == 0, shown.err
    result = json.loads(shown.out)
    num_modes = len(bench.modes(Config().tracker))
    assert [(r["objects"], r["prompts"]) for r in result["rows"]] == [
        case for case in [(2, 1), (3, 1), (3, 3)] for _ in range(num_modes)
    ]
    for row in result["rows"]:
        assert row["fps"] > 0 and row["state_mb"] > 0
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert {"image encoder", "detection", "render"} <= set(row["shares"])
    code, shown = call("--objects", "1", "--prompts", "1", "--set", "device.threads=1")
    assert code == 0 and "frames/s" in shown.out and "exact" in shown.out
    code, shown = call("--objects", "none")
    assert code == 2 and "bad numbers 'none'" in shown.err
