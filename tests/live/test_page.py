"""The live page in real Chromium: it loads, shows moving pictures with masks, and its controls work."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pipeline.live.server import serve
from tests.live.browser import Browser, is_available
from tests.live.running import Running, live
from tests.live.servers import RtspProcess, wait_for

pytestmark = pytest.mark.skipif(not is_available(), reason="chromium and chromium-driver are not installed")
TAB, ENTER = "\ue004", "\ue007"
SHOTS = os.environ.get("MASKLET_SCREENSHOTS")
"""A folder to keep screenshots in, for people."""


def keep(browser: Browser, name: str) -> None:
    if SHOTS:
        time.sleep(2)
        browser.screenshot(Path(SHOTS) / f"live-{name}.png")


def fingerprint(browser: Browser) -> object:
    """Mean colours of the shown picture, in a coarse grid."""
    return browser.run(
        """const image = document.querySelector(".picture img"), canvas = document.createElement("canvas");
        canvas.width = 32; canvas.height = 18;
        const pen = canvas.getContext("2d");
        pen.drawImage(image, 0, 0, 32, 18);
        return Array.from(pen.getImageData(0, 0, 32, 18).data).join()"""
    )


def test_the_page_shows_and_controls_cameras() -> None:
    with RtspProcess(cameras=3, size="640x360") as camera:
        config = live(allow_urls=(f"rtsp://127.0.0.1:{camera.port}/*",))
        with Running([camera.url(0), camera.url(1)], config) as running, Browser(1280, 900) as browser:
            browser.open(running.address.url)
            browser.wait("document.querySelectorAll('.picture img:not([hidden])').length === 2")
            keep(browser, "desktop")

            first = fingerprint(browser)
            assert wait_for(lambda: fingerprint(browser) != first), "the picture stands still"
            name = browser.run("return document.querySelector('.title h2').textContent")

            # A phrase is added; what it finds comes into the picture and the list, the others keep their ids.
            assert name in running.status()
            before = {lane["prompt"]: lane["masklet_id"] for lane in running.board.timeline(name)}
            browser.type(".more input", "green <img src=x onerror=alert(1)>" + ENTER)
            browser.wait("document.querySelectorAll('article .phrases')[0].children.length === 3")
            assert browser.run("return document.querySelectorAll('.phrases img').length") == 0
            assert wait_for(lambda: any(x["prompt"].startswith("green") for x in running.board.timeline(name)))
            latest = running.board.views[name].latest
            assert latest is not None
            now = dict(zip(latest.result.prompt, latest.result.masklet_id.tolist(), strict=True))
            assert {p: now[p] for p in before if p in now} == before

            # A phrase is taken off by keyboard.
            browser.run("document.querySelector('.phrases button').focus()")
            browser.press(ENTER)
            browser.wait("document.querySelectorAll('article .phrases')[0].children.length === 2")

            # Pause and resume.
            browser.click(".pause")
            browser.wait("document.querySelector('.state').textContent === 'paused'")
            browser.click(".pause")
            browser.wait("document.querySelector('.state').textContent === 'live'")

            # A camera is added and removed.
            browser.click("#add-open")
            browser.type("#add input[name=url]", camera.url(2))
            browser.type("#add input[name=phrases]", "red disc, blue disc" + ENTER)
            browser.wait("document.querySelectorAll('.title h2').length === 3")
            browser.wait("document.querySelectorAll('.picture img:not([hidden])').length === 3")
            browser.click(".remove")
            browser.wait("document.querySelector('.remove').textContent === 'Really remove?'")
            browser.click(".remove")
            browser.wait(f"![...document.querySelectorAll('.title h2')].some((h) => h.textContent === '{name}')")
            assert name not in running.status()
            assert browser.complaints() == []


def test_a_page_without_its_server_says_so_and_comes_back_without_repeating_itself() -> None:
    live_dots = "return document.querySelectorAll('.dot.live').length"
    with RtspProcess() as camera, Running([camera.url()], live()) as running, Browser() as browser:
        with serve(running.service, running.board, "127.0.0.1:0", None) as address:
            browser.open(address.url)
            browser.wait("document.querySelectorAll('.picture img:not([hidden])').length === 1")
            assert browser.run(live_dots) == 1
        browser.wait("document.querySelectorAll('.dot.live').length === 0")
        assert browser.run("return document.querySelector('.state').textContent") == "no connection"
        with serve(running.service, running.board, f"127.0.0.1:{address.port}", None):
            browser.wait("document.querySelectorAll('.dot.live').length === 1")
            running.service.request_pause(running.service.stream_ids()[0], True)
            browser.wait("[...document.querySelectorAll('#log b')].some((b) => b.textContent === 'stream gap')")
            lines = browser.run("return [...document.querySelectorAll('#log li')].length")
            assert lines == len(running.board.events_after(0))


def test_an_address_that_is_not_allowed_is_explained() -> None:
    with Running([], live(allow_urls=("rtsp://10.0.0.1/*",))) as running, Browser() as browser:
        browser.open(running.address.url)
        browser.wait("!document.querySelector('#empty').hidden")
        browser.click("#add-open")
        browser.type("#add input[name=url]", "rtsp://192.0.2.1/x" + ENTER)
        browser.wait("document.querySelector('#toast').textContent.includes('allow_urls')")


@pytest.mark.parametrize(("name", "width", "dark"), [("dark", 1280, True), ("phone", 390, False)])
def test_dark_and_phone(name: str, width: int, dark: bool) -> None:
    with (
        RtspProcess(cameras=2, size="640x360") as camera,
        Running([camera.url(0), camera.url(1)], live(), token="secret") as running,
        Browser(width, 844, dark=dark) as browser,
    ):
        browser.open(running.address.url)
        browser.wait("!document.querySelector('#locked').hidden")
        browser.type("#token", "secret" + ENTER)
        browser.wait("document.querySelectorAll('.picture img:not([hidden])').length >= 1")
        keep(browser, name)
        assert browser.run("return document.documentElement.scrollWidth") <= width
        ground = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert (sum(int(v) for v in ground[4:-1].split(",")) < 200) is dark
        # Every control can be reached by keyboard, and has a name.
        nameless = browser.run(
            """return [...document.querySelectorAll("button, input, canvas, img")].filter((e) =>
            !(e.textContent.trim() || e.getAttribute("aria-label") || e.alt || e.hidden)).length"""
        )
        assert nameless == 0
        browser.run("document.activeElement.blur()")
        seen = set()
        for _ in range(8):
            browser.press(TAB)
            seen.add(browser.run("return [...document.querySelectorAll('*')].indexOf(document.activeElement)"))
        assert len(seen) == 8
        assert [c for c in browser.complaints() if "401" not in c] == []
