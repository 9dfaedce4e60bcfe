"""The report's file: compact and exact data, nothing from outside, nothing that a phrase could break out of."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

import pipeline.view as view_package
from pipeline import masks as mask_ops
from pipeline.errors import UsageError
from pipeline.view import script_json, view
from pipeline.view.pack import Grid, packed, packed_steps, varints
from tests.pictured import HOSTILE, Footage, masks_at, pictured_run
from tests.runs import KINDS, blob, make_run
from tests.synth import read_barcode


def unpacked(data: bytes) -> list[int]:
    """An independent reading of the zigzag varints."""
    out, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            out.append((value >> 1) ^ -(value & 1))
            value, shift = 0, 0
    return out


def rings(data: bytes) -> list[np.ndarray]:
    values = iter(unpacked(data))
    anchor = np.zeros(2, np.int64)
    out = []
    for _ in range(next(values)):
        steps = np.array([(next(values), next(values)) for _ in range(next(values))])
        steps[0] += anchor
        ring = steps.cumsum(axis=0)
        anchor = ring[0]
        out.append(ring)
    return out


class Page(HTMLParser):
    """The elements of a page: tag, attributes, text."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.elements.append(("", {}, ""))  # what follows is not this element's text

    def handle_data(self, data: str) -> None:
        if self.elements:
            tag, attrs, text = self.elements[-1]
            self.elements[-1] = (tag, attrs, text + data)

    def block(self, element_id: str) -> str:
        return next(text for _, attrs, text in self.elements if attrs.get("id") == element_id)

    def json(self, element_id: str) -> Any:
        return json.loads(self.block(element_id))


@pytest.mark.parametrize(
    "values",
    [[], [0], [1, -1, 63, 64, -64, -65, 8191, 8192], [2**31, -(2**31), 2**40, -(2**40)], list(range(-300, 300))],
)
def test_varints_come_back(values: list[int]) -> None:
    assert unpacked(varints(np.array(values, np.int64))) == values
    assert unpacked(base64.b64decode(packed(values))) == values
    assert np.cumsum(unpacked(base64.b64decode(packed_steps(values)))).tolist() == values


@pytest.mark.parametrize("size", [(1, 1), (37, 53), (112, 112), (192, 320), (720, 1280), (1080, 1920), (1500, 700)])
@pytest.mark.parametrize("seed", [0, 1])
def test_outlines_are_within_the_stated_tolerance(size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = blob(rng, size, np.array([0.5, 0.4]))
    grid = Grid.of(size[1], size[0])
    lines = rings(grid.outline(mask_ops.encode(mask[None])[0]))
    canvas = np.zeros((grid.height + 2, grid.width + 2), np.uint8)
    cv2.drawContours(canvas, [r.astype(np.int32)[:, None] for r in lines], -1, 1, cv2.FILLED)
    whole = max(1, int(grid.scale))
    true = cv2.resize(mask.astype(np.uint8), (grid.width, grid.height), interpolation=cv2.INTER_NEAREST)
    wrong = canvas[: grid.height, : grid.width] != true
    edge = cv2.morphologyEx(true, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    away = cv2.distanceTransform(1 - (edge > 0).astype(np.uint8), cv2.DIST_L2, 5) / grid.scale
    specks = cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2][1:, 4]
    allowed = int((specks < 8).sum() * 8 * whole**2)  # specks are left out
    assert (wrong & (away > grid.tolerance_px)).sum() <= allowed
    assert lines


def test_an_empty_mask_has_no_rings() -> None:
    assert rings(Grid.of(64, 48).outline(mask_ops.encode(np.zeros((1, 48, 64), bool))[0])) == []


def test_outlines_are_small() -> None:
    mask = np.zeros((720, 1280), np.uint8)
    cv2.ellipse(mask, (600, 300), (120, 200), 30, 0, 360, 1, -1)
    rle = mask_ops.encode(mask[None].astype(bool))[0]
    assert len(Grid.of(1280, 720).outline(rle)) < len(rle.counts) / 2


def test_the_report_is_one_file_that_fetches_nothing(tmp_path: Path) -> None:
    out = view(pictured_run(tmp_path), tmp_path / "r" / "report.html")
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]
    page = Page(out)
    for tag, attrs, _ in page.elements:
        assert not {"src", "href", "action", "srcset", "data"} & attrs.keys(), tag
        assert not [a for a in attrs if a.startswith("on")], tag
    assert "http://" not in re.sub(r"http://www.w3.org/2000/svg", "", out.read_text())
    assert "https://" not in out.read_text()


def test_the_policy_allows_this_script_and_style_only(tmp_path: Path) -> None:
    page = Page(view(pictured_run(tmp_path, footage=Footage(count=3)), tmp_path / "r.html"))
    policy = next(a["content"] for t, a, _ in page.elements if t == "meta" and "http-equiv" in a)
    assert policy is not None
    run = [text for t, a, text in page.elements if t == "script" and "type" not in a]
    style = [text for t, _, text in page.elements if t == "style"]
    for (text,) in (run, style):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'")


def test_what_the_page_holds_is_what_the_run_holds(tmp_path: Path) -> None:
    page = Page(view(pictured_run(tmp_path), tmp_path / "r.html"))
    data = page.json("data-0")
    frames = np.cumsum(unpacked(base64.b64decode(data["frames"])))
    assert frames.tolist() == list(range(40))
    times = np.cumsum(unpacked(base64.b64decode(data["times_us"])))
    np.testing.assert_allclose(times / 1e6, np.arange(40) / 30, atol=1e-6)
    first, second, third = data["masklets"]
    assert third["phrase"] == HOSTILE
    ranks = np.cumsum(unpacked(base64.b64decode(second["at"])))
    assert ranks.tolist() == [*range(5, 12), *range(20, 31)]
    scores = unpacked(base64.b64decode(first["score"]))
    assert (len(scores), min(scores), max(scores)) == (39, 300, 800)
    lengths = unpacked(base64.b64decode(second["lengths"]))
    outline = rings(base64.b64decode(second["outlines"])[: lengths[0]])[0] / data["grid"][0] * 320
    y, x = np.nonzero(masks_at(5, (192, 320))[2])
    np.testing.assert_allclose([outline.min(0), outline.max(0)], [(x.min(), y.min()), (x.max(), y.max())], atol=1)


def test_the_embedded_video_has_every_frame(tmp_path: Path) -> None:
    run = pictured_run(tmp_path, sampling="stride: 2")
    page = Page(view(run, tmp_path / "r.html"))
    (tmp_path / "copy.mp4").write_bytes(base64.b64decode(page.block("video-0")))
    with av.open(str(tmp_path / "copy.mp4")) as container:
        frames = list(container.decode(video=0))
        assert container.streams.video[0].codec_context.profile in {"Baseline", "Constrained Baseline"}
    assert [read_barcode(f.to_ndarray(format="rgb24")) for f in frames] == list(range(0, 40, 2))
    times = np.cumsum(unpacked(base64.b64decode(page.json("data-0")["times_us"]))) / 1e6
    np.testing.assert_allclose([float(f.pts * f.time_base) for f in frames], times, atol=1e-6)


def test_crops_show_the_life(tmp_path: Path) -> None:
    data = Page(view(pictured_run(tmp_path), tmp_path / "r.html")).json("data-0")
    for masklet in data["masklets"]:
        assert len(masklet["crops"]) == 6
        jpeg = base64.b64decode(masklet["crops"][0][1].split(",")[1])
        assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1).shape == (110, 176, 3)
    assert [k for k, _ in data["masklets"][1]["crops"]][0::5] == [5, 30]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = pictured_run(tmp_path, footage=Footage(count=24))
    run.manifest.videos[0].uri = "clip.mp4"  # relative and gone: its message goes into the page
    run.manifest.videos[0].error = "<!--<script>" + HOSTILE
    run.manifest.model["name"] = HOSTILE
    text = view(run, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<img" not in text
    assert "<!--" not in text.replace("<!doctype", "")
    page = Page(tmp_path / "r.html")
    assert [t for t, _, _ in page.elements].count("img") == 0
    assert page.json("index")["phrases"][1] == HOSTILE
    assert page.json("index")["model"] == HOSTILE


@pytest.mark.parametrize("text", ["</script>", "<!--", "]]>", "\u2028\u2029", "&lt;", "{{CSS}}", "\\u003c", '"\n'])
def test_script_json_is_safe_and_exact(text: str) -> None:
    safe = script_json([text])
    assert json.loads(safe) == [text]
    assert not re.search("[<>&\u2028\u2029]", safe)


def test_what_is_large_goes_beside_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = pictured_run(tmp_path, ("a", "b"), footage=Footage(count=24))
    monkeypatch.setattr(view_package, "EMBED_BYTES", 0)
    out = view(run, tmp_path / "out" / "my report.html")
    beside = out.parent / "my report_files"
    assert sorted(p.name for p in beside.iterdir()) == ["000.js", "000.mp4", "001.js", "001.mp4"]
    index = Page(out).json("index")
    assert [(v["data"], v["video"]) for v in index["videos"]] == [
        (f"my report_files/{n}.js", f"my report_files/{n}.mp4") for n in ("000", "001")
    ]
    assert out.stat().st_size < 80_000
    monkeypatch.undo()
    view(run, out)
    assert not beside.exists()  # what an earlier report left there is gone
    assert [p.name for p in out.parent.iterdir()] == ["my report.html"]


def test_a_missing_source_leaves_the_masks(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    Path(run.video().uri).unlink()
    page = Page(view(run, tmp_path / "r.html"))
    (video,) = page.json("index")["videos"]
    assert video["video"] is None
    assert "The video is not shown" in video["notice"]
    data = page.json("data-0")
    assert np.cumsum(unpacked(base64.b64decode(data["frames"]))).tolist() == [f for f in range(40) if f != 3]
    assert len(data["masklets"]) == 3


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "many_ids"])
def test_every_run_has_a_report(tmp_path: Path, kind: str) -> None:
    run = make_run(tmp_path / "run", kind)
    page = Page(view(run, tmp_path / "r.html"))
    assert [v["id"] for v in page.json("index")["videos"]] == [v.video_id for v in run.videos]
    for number, entry in enumerate(run.videos):
        if entry.status != "failed":
            assert len(page.json(f"data-{number}")["masklets"]) == entry.num_masklets


def test_one_video_of_several(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "several_videos")
    page = Page(view(run, tmp_path / "r.html", video_id="street-2"))
    assert [v["id"] for v in page.json("index")["videos"]] == ["street-2"]
    with pytest.raises(UsageError, match="no video"):
        view(run, tmp_path / "r.html", video_id="nowhere")


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the report"):
        view(make_run(tmp_path / "run"), tmp_path / "file" / "r.html")
