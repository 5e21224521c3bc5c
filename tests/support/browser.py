"""Chromium with the service's page in it, and what the tests of the page do there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from srgan_service.work.models import ServedModel

from srgan.pictures import Picture, encode
from srgan.upscale import Upscaler
from support.serving import METADATA, NearestEngine, Running, serving

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
Browser: TypeAlias = Any
Page: TypeAlias = Any

# As root there is no sandbox; the rest keeps the browser from looking for its maker's servers.
_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
RED, CYAN = (200, 80, 40), (55, 175, 215)  # each the other's negative
NOT_DRAWN = (-255, -255, -255)  # no colour, and near none
WHAT_IS_KEPT = """() => new Promise((done) => {
    const opening = indexedDB.open("srgan", 1);
    opening.onsuccess = () => {
        const counting = opening.result.transaction("pictures").objectStore("pictures").count();
        counting.onsuccess = () => done(counting.result);
    };
})"""
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}


@contextlib.contextmanager
def chromium(*arguments: str) -> Iterator[Browser]:
    """Start the browser, or skip and say how to get one. `SRGAN_CHROMIUM` names one that is not on the path.

    `arguments`: beside the usual ones; what they say of graphics processors then counts.
    """
    names = (os.environ.get("SRGAN_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    path_of_browser = next((path for name in names if name and (path := shutil.which(name))), None)
    if path_of_browser is None:
        pytest.skip("THE PAGE IS NOT TESTED: no browser; apt-get install chromium, or name one in SRGAN_CHROMIUM")
    with playwright.sync_playwright() as running:
        usual = [argument for argument in _ARGUMENTS if not (arguments and argument == "--disable-gpu")]
        browser = running.chromium.launch(executable_path=path_of_browser, args=[*usual, *arguments])
        try:
            yield browser
        finally:
            browser.close()


class Negative(NearestEngine):
    """Repeats every pixel 4x4 in the opposite colour, so that it is told from its original anywhere."""

    def run(self, lr: np.ndarray) -> np.ndarray:
        return 1 - super().run(lr)


@contextlib.contextmanager
def negative_serving(names: tuple[str, ...] = ("negative", "nearest"), **changes: Any) -> Iterator[Running]:
    """Run a server with models of these names: the first, the default, makes negatives, the others repeat pixels.

    Two balances are one or the other; what makes negatives has the second for its partner.
    """
    with serving(**changes) as server:
        before, tile = changes.get("before"), changes.get("tile_lr_px", "auto")
        engines = Negative(before), NearestEngine(before)
        for engine, name in zip(engines, names, strict=False):
            engine.metadata = replace(METADATA, name=name)
        nearest = Upscaler(engine=engines[1], tile_lr_px=tile, partner=lambda: nearest)
        negative = Upscaler(engine=engines[0], tile_lr_px=tile, partner=lambda: nearest)
        server.service.models.serve_only(
            {
                ServedModel(name, f"What {name} does.", METADATA.scale, is_default=not place): (
                    nearest if place else negative
                )
                for place, name in enumerate(names)
            },
            balance=(names[1], names[0]),
            balanced={0.25: nearest, 0.75: negative},
        )
        yield server


@contextlib.contextmanager
def page_of(browser: Browser, server: Running, *, refused: tuple[int, ...] = (), **options: Any) -> Iterator[Page]:
    """Open the page as a new visitor. What goes wrong in it fails, but for answers of the statuses `refused`.

    So does a request to anywhere else: the page must work where there is no other network.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
    context.set_default_timeout(15_000)
    page, wrong = context.new_page(), []
    home = f"http://127.0.0.1:{server.port}/"

    def heard(message: Any) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            wrong.append(message.text)

    def answered(response: Any) -> None:
        if not response.url.startswith((home, "blob:")) or (
            response.status >= 400 and response.status not in refused
        ):
            wrong.append(f"{response.status} {response.url}")

    page.on("console", heard)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("response", answered)
    page.goto(home)
    try:
        yield page
        assert not wrong, wrong
    finally:
        context.close()


@contextlib.contextmanager
def held(page: Page, *, but_regions: bool = False) -> Iterator[None]:
    """Keep the service from hearing of pictures meanwhile; parts of them may come through."""
    routes: list[Any] = []

    def hold(route: Any) -> None:
        if but_regions and "region=" in route.request.url:
            route.continue_()
        else:
            routes.append(route)

    page.route("**/v1/upscale*", hold)
    yield
    for route in routes:
        route.continue_()
    page.unroute("**/v1/upscale*")


def give(page: Page, *pictures: tuple[str, bytes]) -> None:
    """Choose files in the page."""
    files = [{"name": name, "mimeType": "", "buffer": content} for name, content in pictures]
    page.locator("#files").set_input_files(files)


def wait_until_done(page: Page, count: int = 1, seconds: float = 15) -> None:
    """Wait until so many versions are made, and the comparison shows what there is."""
    # Only the versions of the picture that is shown are to be seen.
    page.locator("#versions li.done").nth(count - 1).wait_for(timeout=1000 * seconds, state="attached")
    # What is not done says after a colon how far it is; the canvas says what is drawn.
    drawn = re.compile(r"Left: [^:]*; right: [^:]*$")
    playwright.expect(page.locator("#canvas")).to_have_attribute("aria-label", drawn, timeout=15_000)


def plain(red: int, green: int, blue: int, height: int = 30, width: int = 40) -> bytes:
    """Return a PNG of one colour."""
    return encode(Picture(np.full((height, width, 3), (red, green, blue), np.uint8)), "png")


def colour_at(page: Page, x: float, y: float = 0.5) -> tuple[int, int, int]:
    """Return what the stage shows at a place, in fractions of its size, once it is drawn."""
    read = """([x, y]) => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
        const canvas = document.getElementById("canvas");
        const at = [x * canvas.width, y * canvas.height].map(Math.floor);
        done([...canvas.getContext("2d").getImageData(...at, 1, 1).data]);
    })))"""
    red, green, blue, alpha = page.evaluate(read, [x, y])
    return (red, green, blue) if alpha == 255 else NOT_DRAWN


def wait_for_colour(page: Page, x: float, colour: tuple[int, int, int]) -> None:
    """Wait until the stage shows a colour there: large pictures take a moment to be decoded."""
    seen = None
    for _ in range(100):
        if near(seen := colour_at(page, x), colour):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{seen} at {x}, not {colour}")


def near(colour: tuple[int, ...], other: tuple[int, ...], most: int = 2) -> bool:
    return max(abs(a - b) for a, b in zip(colour, other, strict=True)) <= most


def shot(page: Page, folder: Path, name: str, **options: Any) -> None:
    """Write a screenshot to be looked at, into `SRGAN_SCREENSHOTS` if that is set."""
    target = Path(os.environ.get("SRGAN_SCREENSHOTS", folder))
    target.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=target / f"{name}.png", **options)
