"""The pages that the commands write, opened in Chromium: no error, nothing from outside, and what moves moves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from support.browser import shot

from srgan.commands.evaluate import evaluate_command
from srgan.evaluation import benchmark
from srgan.pages.compare import compare_command
from srgan.pages.report import report_command
from srgan.pages.sheet import Contender, sheet_page
from srgan.pictures import Picture, encode

if TYPE_CHECKING:
    from playwright.sync_api import Page

Open = Callable[[Path, int], "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs Chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: object, tmp_path: Path) -> Iterator[Open]:
    """Open a page at a width, and see afterwards that it was quiet, fitted and asked for nothing."""
    wrong: list[str] = []
    asked: list[str] = []
    pages = []

    def open_page(path: Path, width: int) -> Page:
        page: Page = browser.new_page(viewport={"width": width, "height": 800})  # type: ignore[attr-defined]
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        shot(page, tmp_path, f"{path.stem}-{width}", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert wrong == []
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]


def make_run(folder: Path) -> Path:
    (folder / "samples").mkdir(parents=True)
    rows = [
        {"stage": "pretrain", "step": step, "elapsed_s": step, "content": 1 / step, "validation/lpips": 1 / step}
        for step in range(1, 40)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (1, 20, 39):
        strip = encode(Picture(np.full((128, 384, 3), 5 * step, np.uint8)), "png")
        (folder / "samples" / f"pretrain-{step:09d}.png").write_bytes(strip)
    return folder


@pytest.mark.parametrize("width", [1280, 390])
def test_reports_and_comparisons(opened: Open, tmp_path: Path, width: int) -> None:
    one, other = make_run(tmp_path / "one"), make_run(tmp_path / "other")
    for path in (report_command(one, None), compare_command([one, other], tmp_path / "compare.html")):
        page = opened(path, width)
        strip = page.locator(".samples li.shown")
        assert strip.count() == 1
        assert page.locator(".slider output").inner_text() in ("Pretrain, step 39", "3 of 3")
        page.locator(".slider input").fill("0")
        assert page.locator(".samples li").nth(0).is_visible()
        assert not page.locator(".samples li").nth(2).is_visible()
        assert page.locator(".chart svg").count() == 2


@pytest.mark.parametrize("width", [1280, 390])
def test_evaluations(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(benchmark, "perceptual_metrics", lambda notes: {})
    hr = tmp_path / "HR"
    hr.mkdir()
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 60 + 90 * index, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(hr / f"{index}.png")
    evaluate_command(hr, None, [], [f"theirs={hr}"], html_path=tmp_path / "e.html")
    page = opened(tmp_path / "e.html", width)

    card = page.locator(".exhibit").first
    sides = {side: card.locator(f".compare img.{side}").get_attribute("data-name") for side in ("left", "right")}
    assert sides == {"left": "bicubic", "right": "theirs"}
    clip = "getComputedStyle(document.querySelector('.exhibit .right')).clipPath"
    card.locator(".compare input").fill("20")
    assert page.evaluate(clip) == "inset(0px 0px 0px 20%)"
    box = card.locator(".compare").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    assert 70 < float(page.evaluate(clip).split()[-1].rstrip("%)")) < 80
    card.locator(".choose-right").select_option("HR")
    assert card.locator(".compare img.right").get_attribute("data-name") == "HR"

    def first() -> str:
        return page.locator(".exhibit h4").first.inner_text()

    page.locator("#order").select_option("colour_shift")
    by_shift = first()
    values = page.eval_on_selector_all(".exhibit", "cards => cards.map(card => Number(card.dataset.colourShift))")
    assert values == sorted(values, reverse=True), by_shift

    column = page.locator(".sortable tbody tr td:nth-child(3)")
    heading = page.locator(".sortable th", has_text="PSNR-Y")
    heading.click()
    ascending = column.all_inner_texts()
    heading.click()
    descending = column.all_inner_texts()
    assert [float(text) for text in ascending] == sorted(float(text) for text in ascending)
    assert [float(text) for text in descending] == sorted((float(text) for text in ascending), reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("width", [1280, 390])
def test_sheets(opened: Open, tmp_path: Path, width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    contenders = [Contender(name, levels, 1.0) for name, levels in zip(("a", "b", "c"), noise, strict=True)]
    (tmp_path / "s.html").write_text(sheet_page("a.png", Picture(noise[0, ::4, ::4]), contenders, []))
    page = opened(tmp_path / "s.html", width)
    shown = {side: page.locator(f".compare img.{side}").get_attribute("data-name") for side in ("left", "right")}
    assert shown == {"left": "a", "right": "b"}
    page.locator(".compare input").fill("20")
    assert page.evaluate("getComputedStyle(document.querySelector('.right')).clipPath") == "inset(0px 0px 0px 20%)"
    page.locator(".choose-left").select_option("c")
    assert page.locator(".compare img.left").get_attribute("data-name") == "c"
    page.locator(".actual").check()
    assert page.evaluate("document.querySelector('.compare').clientWidth") == 96
    assert page.locator(".place .crops li").count() == 4
