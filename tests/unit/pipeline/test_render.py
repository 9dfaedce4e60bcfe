"""The annotated video: the right frames at the right times, drawn where the masks are, in colours people tell apart."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline import masks as mask_ops
from pipeline.decode import probe, read
from pipeline.errors import RunError, SourceError, UsageError
from pipeline.render import render
from pipeline.render.draw import FILL_SHARE, STYLES, Drawer, Scale, check_style, cut_out
from pipeline.render.encode import Mp4Writer
from pipeline.render.labels import Placer, chip, font_for, paste_chip, shorten
from pipeline.render.palette import BASE, colour, ink, relative_luminance
from pipeline.results import FrameResult
from pipeline.store import VideoEntry, VideoWriter, open_run
from tests.pictured import Footage, masks_at, pictured_run, rows
from tests.runs import make_run
from tests.synth import Encoding, read_barcode

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB; OKLab: Ottosson (2020).
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
_LMS = [[0.41222147, 0.53633254, 0.05144599], [0.2119035, 0.68069955, 0.10739696], [0.08830246, 0.28171884, 0.62997870]]
_LAB = [
    [0.21045426, 0.79361779, -0.00407205],
    [1.9779985, -2.42859221, 0.45059371],
    [0.0259040, 0.78277177, -0.80867577],
]


def oklab(rgb: np.ndarray, vision: str) -> np.ndarray:
    c = rgb / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    return np.cbrt(seen @ np.array(_LMS).T) @ np.array(_LAB).T


def closest(colours: np.ndarray, vision: str) -> float:
    lab = oklab(colours, vision)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    return float(distance[~np.eye(len(lab), dtype=bool)].min())


@pytest.mark.parametrize("vision", VISION)
def test_first_eight_colours_differ_for_everyone(vision: str) -> None:
    assert closest(np.array([colour(i) for i in range(1, 9)], float), vision) > 0.08


def test_colours_depend_on_the_id_alone_and_the_first_24_are_distinct() -> None:
    assert [colour(i) for i in (1, 2, 8)] == [BASE[0], BASE[1], BASE[7]]
    assert len({colour(i) for i in range(1, 25)}) == 24
    assert closest(np.array([colour(i) for i in range(1, 25)], float), "normal") > 0.04
    assert colour(25) == colour(1)


@pytest.mark.parametrize("masklet_id", range(1, 25))
def test_label_text_has_contrast(masklet_id: int) -> None:
    light, dark = sorted((relative_luminance(colour(masklet_id)), relative_luminance(ink(colour(masklet_id)))))[::-1]
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def result_of(masks: dict[int, np.ndarray], index: int = 0, phrase: str = "red car") -> FrameResult:
    stack = np.array(list(masks.values()), bool)
    size = (int(stack.shape[1]), int(stack.shape[2]))
    n = len(masks)
    return FrameResult(
        "v",
        index,
        index / 24,
        size,
        np.array(list(masks), np.int32),
        (phrase,) * n,
        np.full(n, 0.9, np.float32),
        mask_ops.boxes(stack),
        mask_ops.encode(stack),
    )


def test_a_mask_is_tinted_inside_and_nothing_changes_outside() -> None:
    mask = np.zeros((120, 160), bool)
    mask[30:80, 40:100] = True
    mask[50:60, 60:70] = False  # a hole
    image = np.full((120, 160, 3), 100, np.uint8)
    Drawer((120, 160), ("mask",)).draw(image, result_of({3: mask}))
    want = np.round(100 * (1 - FILL_SHARE) + np.array(colour(3)) * FILL_SHARE)
    np.testing.assert_array_equal(image[40, 50], want)
    np.testing.assert_array_equal(image[55, 65], [100] * 3)
    assert np.abs(image[30, 70].astype(int) - colour(3)).max() <= 10  # the outline: full colour, but for its soft edge
    far = np.ones_like(mask)
    far[27:83, 37:103] = False
    assert (image[far] == 100).all()


def test_small_objects_stay_visible_on_large_ones() -> None:
    large, small = np.ones((80, 80), bool), np.zeros((80, 80), bool)
    small[30:50, 30:50] = True
    image = np.zeros((80, 80, 3), np.uint8)
    Drawer((80, 80), ("mask",)).draw(image, result_of({1: small, 2: large}))
    assert image[40, 40, 0] > image[10, 10, 0]  # orange over sky blue, although its id is lower


def test_an_empty_mask_and_an_empty_frame_draw_no_pixel() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    drawer = Drawer((40, 40), ("mask", "trace", "id"))
    drawer.draw(image, result_of({1: np.ones((40, 40), bool)}))
    image[:] = 7
    Drawer((40, 40), ("mask",)).draw(image, result_of({1: np.zeros((40, 40), bool)}))
    assert (image == 7).all()
    assert cut_out(mask_ops.encode(np.zeros((1, 4, 4), bool))[0]) is None


def moving(index: int, masklet_id: int = 1) -> FrameResult:
    mask = np.zeros((100, 300), bool)
    mask[40:60, 10 + 10 * index : 30 + 10 * index] = True
    return result_of({masklet_id: mask}, index)


def test_a_trace_shows_the_way_and_ends_with_the_object() -> None:
    drawer = Drawer((100, 300), ("trace",))
    for index in range(10):
        image = np.zeros((100, 300, 3), np.uint8)
        drawer.draw(image, moving(index))
    assert image[50, 22:108].any(axis=1).all()  # from the first centre to the last one
    drawer.draw(np.zeros((100, 300, 3), np.uint8), moving(10, masklet_id=2))
    image = np.zeros((100, 300, 3), np.uint8)
    drawer.draw(image, moving(11))
    assert not image.any()  # it was away for a frame: its path starts afresh


def test_a_trace_forgets_what_is_long_ago() -> None:
    drawer = Drawer((100, 300), ("trace",))
    for index in (0, 1, 2, 70, 71, 72):
        image = np.zeros((100, 300, 3), np.uint8)
        drawer.draw(image, moving(index % 20))
    drawer.draw(image, result_of({1: np.ones((100, 300), bool)}, index=500))
    assert len(drawer._paths[1]) == 1


@pytest.mark.parametrize("style", [s for s in STYLES if s != "trace"])
def test_each_style_draws_by_itself(style: str) -> None:
    image = np.zeros((100, 300, 3), np.uint8)
    Drawer((100, 300), (style,)).draw(image, moving(3))
    assert image.any()


@pytest.mark.parametrize("style", [("mask", "glow"), (), ("",)])
def test_unknown_styles_are_refused(style: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="choose from mask, box, id, trace"):
        check_style(style)


@pytest.mark.parametrize(
    ("size", "font_px"), [((112, 112), 10), ((480, 854), 12), ((720, 1280), 18), ((2160, 3840), 54)]
)
def test_labels_grow_with_the_picture(size: tuple[int, int], font_px: int) -> None:
    assert Scale.of(size).font_px == font_px


def overlapping(places: list[tuple[int, int, int]], sizes: list[list[tuple[int, int]]]) -> int:
    rects = [(x, y, x + s[v][0], y + s[v][1]) for (v, x, y), s in zip(places, sizes, strict=True)]
    pairs = [(a, b) for i, a in enumerate(rects) for b in rects[:i]]
    return sum(min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1]) for a, b in pairs)


@pytest.mark.parametrize("seed", range(5))
def test_labels_do_not_hide_each_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform((0, 0), (1100, 550), (20, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(30, 160, (20, 2))], axis=1).astype(np.float32)
    sizes = [[(110, 24), (30, 24)]] * 20
    places = Placer((720, 1280)).place(range(1, 21), boxes, sizes)
    assert overlapping(places, sizes) == 0
    assert all(0 <= x <= 1280 - sizes[0][v][0] and 0 <= y <= 720 - 24 for v, x, y in places)


def test_labels_of_identical_boxes_lie_beside_each_other() -> None:
    boxes = np.array([[200, 200, 300, 300]] * 6, np.float32)
    sizes = [[(90, 20), (24, 20)]] * 6
    assert overlapping(Placer((480, 640)).place(range(6), boxes, sizes), sizes) == 0


def test_a_label_keeps_its_place_while_that_is_about_as_good() -> None:
    placer, sizes = Placer((480, 640)), [[(90, 20), (24, 20)]] * 2
    apart = np.array([[100, 100, 200, 200], [400, 100, 500, 200]], np.float32)
    touching = np.array([[100, 100, 200, 200], [120, 100, 220, 200]], np.float32)
    crowded = placer.place((1, 2), touching, sizes)[1]
    calm = placer.place((1, 2), apart, sizes)[1]
    assert (crowded[1] - 120, crowded[2]) != (0, 80)
    assert (calm[1] - 400, calm[2]) in {(crowded[1] - 120, crowded[2]), (0, 80)}
    assert placer.place((1, 2), apart, sizes)[1] == calm


def test_a_label_larger_than_the_picture_is_cut_off() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    paste_chip(image, chip("a very long phrase", 16, colour(1)), -4, -2)
    assert image.any()
    paste_chip(image, chip("x", 16, colour(1)), 50, 50)


def test_phrases_are_made_printable_and_short() -> None:
    assert shorten("a\nb\x1b[0m", 10) == "a b [0m"
    assert shorten("abcdefgh", 5) == "abcd…"
    assert len(shorten("x" * 500, 28)) == 28
    for text in ("naïve", "Привет", "猫", "🙂", ""):
        assert font_for(text, 14).getlength(text + "a") > 0


# ---- The file --------------------------------------------------------------------------------------------------------


def frames_of(path: Path) -> tuple[list[np.ndarray], list[float], av.container.InputContainer]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [f.to_ndarray(format="rgb24") for f in frames], [float(f.pts * f.time_base) for f in frames], container


def test_every_tracked_frame_is_there_at_its_own_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pts = np.cumsum(rng.integers(700, 9000, 40)).tolist()
    run = pictured_run(tmp_path, footage=Footage(pts=pts))
    out = render(run, tmp_path / "deep" / "overlay.mp4", style=("mask", "trace"))
    images, times, _ = frames_of(out)
    assert [read_barcode(i) for i in images] == list(range(40))
    np.testing.assert_allclose(times, probe(run.video().uri, "clip").pts_s, atol=1e-6)
    assert [p.name for p in out.parent.iterdir()] == ["overlay.mp4"]


def test_the_file_plays_everywhere(tmp_path: Path) -> None:
    out = render(pictured_run(tmp_path, footage=Footage(count=5)), tmp_path / "o.mp4")
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, len(container.streams)) == (320, 192, 1)
    data = out.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_masks_are_drawn_where_they_are(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    images, _, _ = frames_of(render(run, tmp_path / "o.mp4", style=("mask",)))
    plain = [f.image.astype(int) for f in read(probe(run.video().uri, "clip"), 0, 40)]
    for frame in (0, 3, 10, 25, 39):
        drawn = np.abs(images[frame].astype(int) - plain[frame]).sum(-1) > 45
        masks = masks_at(frame, (192, 320))
        inside = np.any(list(masks.values()), axis=0) if masks else np.zeros((192, 320), bool)
        if inside.any():
            assert (drawn & inside).sum() / inside.sum() > 0.6
        assert (drawn & ~inside).sum() < 0.02 * inside.size


def test_strided_runs_show_the_tracked_frames_only(tmp_path: Path) -> None:
    run = pictured_run(tmp_path, sampling="stride: 3")
    images, times, _ = frames_of(render(run, tmp_path / "o.mp4", style=("mask",)))
    assert [read_barcode(i) for i in images] == list(range(0, 40, 3))
    np.testing.assert_allclose(np.diff(times), 0.1, atol=1e-6)


@pytest.mark.parametrize(("sampling", "first", "last"), [("start: '8'", 8, 39), ("start: 0.5s, stop: 1s", 15, 29)])
def test_the_span_that_was_tracked_is_rendered(tmp_path: Path, sampling: str, first: int, last: int) -> None:
    run = pictured_run(tmp_path, sampling=sampling)
    (tmp_path / "run/masklets/clip").rename(tmp_path / "old")  # rows of all frames: keep those of the span
    table = probe(run.video().uri, "clip")
    with VideoWriter(tmp_path / "run/masklets/clip") as writer:
        for result in rows(table, range(first, last + 1), (192, 320), "clip"):
            writer.write(result)
    run.manifest.videos[0].num_tracked = last - first + 1
    images, times, _ = frames_of(render(run, tmp_path / "o.mp4", style=("mask",)))
    assert [read_barcode(i) for i in images] == list(range(first, last + 1))
    np.testing.assert_allclose(times[0], first / 30, atol=1e-6)


def test_a_source_that_starts_late_is_moved_to_zero(tmp_path: Path) -> None:
    pts = [90_000 * 100 + 3000 * i for i in range(10)]
    run = pictured_run(tmp_path, footage=Footage(count=10, pts=pts, suffix=".mkv"))
    _, times, _ = frames_of(render(run, tmp_path / "o.mp4"))
    np.testing.assert_allclose(times, np.arange(10) / 30, atol=2e-3)  # Matroska keeps milliseconds


def test_odd_sides_are_padded(tmp_path: Path) -> None:
    how = Encoding("ffv1", pix_fmt="bgr0")
    run = pictured_run(tmp_path, footage=Footage(count=6, size=(97, 161), how=how, suffix=".mkv"))
    images, _, _ = frames_of(render(run, tmp_path / "o.mp4"))
    assert images[0].shape == (98, 162, 3)


def test_colours_survive_the_trip(tmp_path: Path) -> None:
    patches = np.array([colour(i) for i in range(1, 9)], np.uint8).repeat(64, 0).reshape(1, -1, 3).repeat(64, 0)
    with Mp4Writer(tmp_path / "c.mp4", time_base=Fraction(1, 25), fps=None) as w:
        for pts in range(3):
            w.write(patches, pts)
    frame = next(iter(read(probe(str(tmp_path / "c.mp4"), "c"), 0, 1)))
    centres = frame.image[32, 32::64].astype(int)
    assert np.abs(centres - [colour(i) for i in range(1, 9)]).max() <= 6
    with av.open(str(tmp_path / "c.mp4")) as container:
        assert container.streams.video[0].codec_context.colorspace == 1


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    left = pictured_run(tmp_path / "a")
    right = pictured_run(tmp_path / "b", sampling="stride: 2")
    images, _, _ = frames_of(render(left, tmp_path / "o.mp4", style=("mask",), beside=right))
    assert len(images) == 40
    height, width = images[0].shape[:2]
    assert (height, width) == (192, 642)
    plain = next(iter(read(probe(left.video().uri, "clip"), 5, 6))).image.astype(int)
    half = (slice(60, 160), slice(None))
    changed = [(np.abs(images[5][:, x : x + 320].astype(int) - plain).sum(-1) > 60)[half].sum() for x in (0, 322)]
    assert changed[0] > 1000 > 50 > changed[1]  # the right run did not track frame 5


def test_runs_of_different_videos_cannot_stand_side_by_side(tmp_path: Path) -> None:
    left = pictured_run(tmp_path / "a", footage=Footage(count=3))
    right = pictured_run(tmp_path / "b", footage=Footage(count=3, size=(96, 160)))
    with pytest.raises(UsageError, match="320x192 in one run and 160x96"):
        render(left, tmp_path / "o.mp4", beside=right)


def test_a_missing_source_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    run = pictured_run(tmp_path, footage=Footage(count=3))
    Path(run.video().uri).unlink()
    with pytest.raises(SourceError) as caught:
        render(run, tmp_path / "o.mp4")
    assert "clip.mp4" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o.mp4").exists()


def test_another_file_under_the_same_name_is_refused(tmp_path: Path) -> None:
    run = pictured_run(tmp_path, footage=Footage(count=3))
    pictured_run(tmp_path / "other", footage=Footage(count=3, size=(96, 160)))
    (tmp_path / "other/clip.mp4").replace(tmp_path / "clip.mp4")
    with pytest.raises(SourceError, match="160x96, but 320x192 was tracked"):
        render(run, tmp_path / "o.mp4")


def test_a_source_that_lost_frames_is_refused(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    pictured_run(tmp_path / "other", footage=Footage(count=35))
    (tmp_path / "other/clip.mp4").replace(tmp_path / "clip.mp4")
    with pytest.raises(SourceError, match="35 of 40 tracked frames"):
        render(run, tmp_path / "o.mp4")
    assert Counter(p.suffix for p in tmp_path.iterdir())[".mp4"] == 1


def test_a_failed_video_cannot_be_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "several_videos")
    with pytest.raises(SourceError, match="failed to be tracked"):
        render(run, tmp_path / "o.mp4", video_id="broken")


def test_several_videos_need_a_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "several_videos")
    with pytest.raises(UsageError, match="name one of"):
        render(run, tmp_path / "o.mp4")


def test_rows_beside_the_sampling_are_an_error(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    (run.folder / "config.yaml").write_text("sampling: {stride: 2}\n")
    with pytest.raises(RunError, match="frame 1 has rows"):
        render(run, tmp_path / "o.mp4")


def test_a_run_without_objects_shows_the_plain_video(tmp_path: Path) -> None:
    run = pictured_run(tmp_path, footage=Footage(count=8))
    folder = make_run(tmp_path / "nothing", "empty").folder
    entry = run.video()
    empty = open_run(folder)
    empty.manifest.put(VideoEntry("clip", entry.uri, "done", 320, 192, "30/1", 8, 8))
    images, _, _ = frames_of(render(empty, tmp_path / "o.mp4"))
    assert [read_barcode(i) for i in images] == list(range(8))


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    run = pictured_run(tmp_path, footage=Footage(count=3))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the video"):
        render(run, tmp_path / "file" / "o.mp4")


def test_an_error_on_the_way_leaves_no_file(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Mp4Writer(tmp_path / "x.mp4", time_base=Fraction(1, 30), fps=None) as writer:
            writer.write(np.zeros((32, 32, 3), np.uint8), 0)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert not list(tmp_path.iterdir())
