"""The report in a real browser, opened from disk: what is on screen, and what hands can do with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import pipeline.view as view_package
from pipeline.view import view
from tests.e2e.browser import Browser, installed
from tests.pictured import HOSTILE, SIZE, masks_at, pictured_run
from tests.synth import read_barcode

pytestmark = pytest.mark.skipif(
    not installed(), reason="needs chromium and chromedriver (apt: chromium chromium-driver)"
)

PICTURE = """
const movie = document.getElementById('movie'), canvas = document.createElement('canvas');
canvas.width = movie.videoWidth; canvas.height = movie.videoHeight;
canvas.getContext('2d').drawImage(movie, 0, 0);
return Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)
"""
"""The pixels of the video element as it is shown, without the masks."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return view(pictured_run(folder), folder / "a report #1.html")


@pytest.fixture(autouse=True)
def _no_complaints(browser: Browser) -> Iterator[None]:
    """No test may leave an error or a broken policy in the browser's console."""
    browser.complaints()
    yield
    assert browser.complaints() == []


def state(browser: Browser, name: str) -> str:
    return str(browser.run(f"return document.body.dataset.{name} ?? ''"))


def pictured_frame(browser: Browser) -> int | None:
    pixels = np.array(browser.run(PICTURE), np.uint8).reshape(*SIZE, 4)
    return read_barcode(np.ascontiguousarray(pixels[..., :3]))


def seen_frame(browser: Browser) -> int | None:
    """The frame that a screenshot shows (a video beside a local page is foreign to scripts)."""
    box = browser.run(
        "document.getElementById('overlay').hidden = true; window.scrollTo(0, 0);"
        "const b = document.getElementById('stage').getBoundingClientRect();"
        "return [b.top, b.bottom, b.left, b.right].map(Math.round)"
    )
    png = cv2.imdecode(np.frombuffer(browser.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    assert png is not None
    return read_barcode(np.ascontiguousarray(png[box[0] : box[1], box[2] : box[3], ::-1]))


def settle(browser: Browser, frame: int) -> None:
    browser.wait(f"return document.body.dataset.frame === '{frame}' && !document.getElementById('movie').seeking")


@pytest.mark.parametrize("frame", [0, 1, 11, 12, 25, 39])
def test_the_picture_is_the_frame_of_the_address(browser: Browser, report: Path, frame: int) -> None:
    browser.open(report, f"frame={frame}")
    settle(browser, frame)
    assert pictured_frame(browser) == frame
    assert f"frame {frame}" in browser.run("return document.getElementById('clock').textContent")


def test_masks_lie_on_their_objects(browser: Browser, report: Path) -> None:
    browser.open(report, "frame=25")
    browser.run("document.getElementById('show-labels').click()")
    alpha = browser.run(
        "const c = document.getElementById('overlay');"
        "return [c.width, c.height, Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
        ".filter((_, i) => i % 4 === 3).map((a) => (a > 60 ? 1 : 0))]"
    )
    width, height, inside = alpha
    drawn = np.array(inside, np.uint8).reshape(height, width)
    true = np.any(list(masks_at(25, SIZE).values()), axis=0).astype(np.uint8)
    true = cv2.resize(true, (width, height), interpolation=cv2.INTER_NEAREST)
    assert (drawn & true).sum() / (drawn | true).sum() > 0.95


def test_keys_step_frames(browser: Browser, report: Path) -> None:
    browser.open(report, "frame=10")
    for key, shift, frame in (("ArrowRight", False, 11), ("ArrowLeft", False, 10), ("ArrowRight", True, 20)):
        browser.press(key, shift=shift)
        settle(browser, frame)
        assert pictured_frame(browser) == frame
    assert browser.run("return location.hash") == "#frame=20"


def test_space_plays_with_the_masks_on_the_right_frame_and_stops(browser: Browser, report: Path) -> None:
    browser.open(report, "frame=5")
    browser.run("document.getElementById('stage').focus()")
    browser.press("Space")
    browser.wait("return Number(document.body.dataset.frame) > 12")
    browser.press("Space")
    browser.wait("return document.getElementById('movie').paused")
    frame = int(state(browser, "frame"))
    settle(browser, frame)
    assert pictured_frame(browser) == frame
    assert browser.run("return document.getElementById('play').getAttribute('aria-label')") == "Play"


def test_it_plays_to_the_end_and_again(browser: Browser, report: Path) -> None:
    browser.open(report, "frame=34")
    browser.click("#play")
    browser.wait("return document.body.dataset.frame === '39' && document.getElementById('movie').paused")
    browser.click("#play")
    browser.wait("return Number(document.body.dataset.frame) < 30")


def test_a_click_on_a_mask_shows_its_life(browser: Browser, report: Path) -> None:
    browser.open(report, "frame=25")
    browser.click("#stage", at=(1.3 * 192 / 320, 0.6))
    assert state(browser, "masklet") == "2"
    text = browser.run("return document.getElementById('detail').innerText")
    for words in ("2 red ball", "First", "frame 5", "frame 30", "18 frames of 26", "Away (1)", "8 frames"):
        assert words in text
    assert browser.run("return document.querySelectorAll('.crops img').length") == 6
    browser.click("#stage", at=(0.98, 0.97))
    assert state(browser, "masklet") == ""


def test_low_confidence_is_listed_and_leads_there(browser: Browser, report: Path) -> None:
    browser.open(report, "frame=0&masklet=1")
    assert "Low confidence (1)" in browser.run("return document.getElementById('detail').innerText")
    browser.run("[...document.querySelectorAll('.jumps button')].at(-1).click()")
    settle(browser, 10)
    assert pictured_frame(browser) == 10


def test_the_list_filters_and_sorts(browser: Browser, report: Path) -> None:
    browser.open(report)
    assert state(browser, "shown") == "1 2 3"
    set_to = (
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))"
    )
    browser.run(set_to, "phrase", "=red ball")
    assert state(browser, "shown") == "1 2"
    browser.run(set_to, "min-frames", "19")
    assert state(browser, "shown") == "1"
    browser.run(set_to, "min-frames", "1")
    browser.run(set_to, "phrase", "")
    browser.run(set_to, "min-score", "0.65")
    assert state(browser, "shown") == "1 2"
    browser.run(set_to, "min-score", "0")
    browser.run(set_to, "order", "mean")
    assert state(browser, "shown") == "3 2 1"
    browser.run(set_to, "min-score", "1")
    assert "No masklet passes" in browser.run("return document.getElementById('rows').innerText")


def test_rows_and_letters_choose_masklets(browser: Browser, report: Path) -> None:
    browser.open(report, "frame=0")
    browser.click(".row[data-id='3'] .name")
    assert (state(browser, "masklet"), state(browser, "frame")) == ("3", "20")  # and goes where it is
    browser.press("p")
    assert state(browser, "masklet") == "2"
    browser.press("Escape")
    assert state(browser, "masklet") == ""
    browser.click(".row[data-id='1'] .strip", at=(0.76, 0.5))
    assert (state(browser, "masklet"), state(browser, "frame")) == ("1", "30")


def test_a_new_address_is_followed(browser: Browser, report: Path) -> None:
    browser.open(report, "frame=7&masklet=2")
    assert (state(browser, "frame"), state(browser, "masklet")) == ("7", "2")
    browser.run("location.hash = '#frame=21&masklet=3'")
    browser.wait("return document.body.dataset.frame === '21' && document.body.dataset.masklet === '3'")
    browser.run("location.hash = '#frame=9999&masklet=77&video=none'")
    browser.wait("return document.body.dataset.frame === '39' && document.body.dataset.masklet === ''")


def test_hostile_phrases_are_text(browser: Browser, report: Path) -> None:
    browser.open(report, "masklet=3")
    assert browser.run("return document.title") != "owned"
    assert browser.run("return document.querySelectorAll('img:not(.crops img)').length") == 0
    assert HOSTILE in browser.run("return document.querySelector('#detail h2').textContent")
    assert HOSTILE in browser.run("return [...document.querySelectorAll('#phrase option')].at(-1).textContent")


def test_large_parts_beside_the_report_work_from_disk(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_package, "EMBED_BYTES", 0)
    out = view(pictured_run(tmp_path, ("one", "two")), tmp_path / "100% & more.html")
    browser.open(out, "video=two&frame=17")
    settle(browser, 17)
    assert seen_frame(browser) == 17
    assert "100% & more_files" in browser.run("return document.getElementById('notice').textContent")
    browser.run("const e = document.getElementById('video'); e.value = 0; e.dispatchEvent(new Event('change'))")
    browser.wait("return location.hash.includes('video=one') && document.body.dataset.ready === 'yes'")
    assert state(browser, "shown") == "1 2 3"


def test_without_the_video_masks_still_play(browser: Browser, tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    Path(run.video().uri).unlink()
    browser.open(view(run, tmp_path / "r.html"), "frame=4")
    assert "The video is not shown" in browser.run("return document.getElementById('notice').textContent")
    browser.click("#play")
    browser.wait("return Number(document.body.dataset.frame) > 10")
    browser.click("#play")


def test_every_control_has_a_name_and_the_focus_is_seen(browser: Browser, report: Path) -> None:
    browser.open(report, "frame=25&masklet=2")
    nameless = browser.run(
        "return [...document.querySelectorAll('button, input, select, [tabindex=\"0\"]')].filter((e) => !("
        "e.getAttribute('aria-label') || e.textContent.trim() || e.querySelector('img[alt]') || e.labels?.length"
        ")).map((e) => e.outerHTML)"
    )
    assert nameless == []
    assert browser.run("return document.documentElement.lang") == "en"
    browser.run("document.activeElement.blur()")
    browser.press("Tab")
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(browser: Browser, report: Path, scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.emulate("Emulation.setEmulatedMedia", media)
    try:
        browser.open(report, "masklet=1")
        colours = browser.run(
            "const s = getComputedStyle(document.documentElement);"
            "return ['--paper', '--panel', '--ink', '--quiet', '--warn', '--accent', '--accent-ink']"
            ".map((n) => s.getPropertyValue(n).trim())"
        )
    finally:
        browser.emulate("Emulation.setEmulatedMedia", {"features": []})
    paper, panel, ink, quiet, warn, accent, accent_ink = (luminance(c) for c in colours)
    assert (paper > 0.5) == (scheme == "light")
    pairs = [(text, ground) for text in (ink, quiet, warn) for ground in (paper, panel)] + [(accent_ink, accent)]
    for text, ground in pairs:
        high, low = max(text, ground), min(text, ground)
        assert (high + 0.05) / (low + 0.05) >= 4.5


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_phone_needs_no_sideways_scrolling(browser: Browser, report: Path) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.emulate("Emulation.setDeviceMetricsOverride", phone)
    try:
        browser.open(report, "frame=25&masklet=3")
        assert browser.run("return document.documentElement.scrollWidth") <= 360
        small = browser.run(
            "return [...document.querySelectorAll('.transport button, .row')].filter((e) => e.offsetHeight < 40).length"
        )
        assert small == 0
    finally:
        browser.emulate("Emulation.clearDeviceMetricsOverride", {})
