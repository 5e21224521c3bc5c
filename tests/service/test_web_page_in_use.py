"""The page at `/` in use: while it works, what can be chosen, second thoughts, and screens of every size."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from support.browser import (
    CYAN,
    PHONE,
    RED,
    WHAT_IS_KEPT,
    Browser,
    Page,
    give,
    held,
    negative_serving,
    page_of,
    plain,
    playwright,
    wait_for_colour,
    wait_until_done,
)
from support.serving import Running, until

from srgan.pictures import Picture, decode, encode

expect = playwright.expect


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with negative_serving() as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    with page_of(browser, server, refused=(415,)) as opened:
        yield opened


# Working


def test_while_it_works_there_is_one_picture_and_no_slider(page: Page) -> None:
    with held(page):
        give(page, ("red.png", plain(*RED)))
        wait_for_colour(page, 0.7, RED)
        expect(page.locator("#busy-text")).to_have_text(re.compile("Sending|Working|Starting"))
        for absent in ("#handle", "#right-tag"):
            expect(page.locator(absent)).to_be_hidden()
        expect(page.locator("#save")).to_be_disabled()
    wait_until_done(page)
    expect(page.locator("#busy")).to_be_hidden()
    expect(page.locator("#handle")).to_be_visible()
    wait_for_colour(page, 0.7, CYAN)


def test_what_is_looked_at_comes_first(page: Page) -> None:
    """Of a picture that takes its time the visible part is asked for alone."""
    asked: list[str] = []
    page.on("request", lambda request: asked.extend(parse_qs(urlsplit(request.url).query).get("region", [])))
    with held(page, but_regions=True):
        give(page, ("large.png", plain(*RED, height=400, width=600)))
        wait_for_colour(page, 0.51, CYAN)  # the middle, right of the divider
        wait_for_colour(page, 0.49, RED)
        wait_for_colour(page, 0.9, RED)  # not made yet
        expect(page.locator("#right-tag")).to_have_text("Auto ×4: this part first")
        x, y, width, height = map(int, asked[0].split(","))
        assert abs(x + width / 2 - 1200) <= 1
        assert abs(y + height / 2 - 800) <= 1
    wait_until_done(page)
    wait_for_colour(page, 0.9, CYAN)


def test_the_batch_is_said_in_a_line_in_the_title_and_by_a_notification(browser: Browser, server: Running) -> None:
    with page_of(browser, server, refused=(415,)) as page:
        page.evaluate(
            """() => {
                window.told = [];
                window.Notification = class { constructor(title, { body }) { told.push(`${title}: ${body}`); } };
                Notification.requestPermission = async () => "granted";
                Object.defineProperty(document, "hidden", { get: () => true });
            }"""
        )
        with held(page):
            give(page, ("a.png", plain(*RED)), ("b.png", plain(*CYAN)), ("notes.txt", b"no picture"))
            expect(page.locator("#batch-text")).to_have_text("0 of 3 done")
            assert page.title() == "0 of 3 done · SRGAN"
            page.get_by_role("button", name="Tell me when done").click()
            expect(page.locator("#notify")).to_have_attribute("aria-pressed", "true")
        wait_until_done(page, 2)
        expect(page.locator("#batch-text")).to_have_text("2 done, 1 failed")
        assert page.title() == "2 done, 1 failed · SRGAN"
        expect(page.locator("#notify")).to_be_hidden()
        assert page.evaluate("told") == ["Your pictures are ready: 2 done, 1 failed"]


def test_sizes_are_said_before_and_after_and_zoom_in_percent(page: Page) -> None:
    with held(page):
        give(page, ("red.png", plain(*RED, height=300, width=410)))
        expect(page.locator("#result-size")).to_have_text("410 × 300 become 1640 × 1200, 2.0 megapixels.")
        page.locator("#scale").select_option("Longer side")
        page.locator("#long_side").fill("1200")
        expect(page.locator("#result-size")).to_have_text("410 × 300 become 1200 × 878, 1.1 megapixels.")
        page.locator("#long_side").fill("99999")
        expect(page.locator("#result-size")).to_contain_text("would be too large")
    wait_until_done(page)
    expect(page.locator("#versions .state")).to_have_text(re.compile(r"^Done, 1640 × 1200, [\d.]+ (bytes|kB)$"))
    wait_for_colour(page, 0.7, CYAN)
    page.locator("#zoom-one").click()
    expect(page.locator("#zoom")).to_have_text("100 %")
    page.locator("#stage").press("+")
    expect(page.locator("#zoom")).to_have_text("150 %")


def test_an_animation_plays_on_both_sides_in_step(browser: Browser, server: Running) -> None:
    colours = ((250, 0, 0), (0, 0, 250))
    frames = [Picture(np.full((20, 30, 3), colour, np.uint8), duration_ms=150.0) for colour in colours]
    moving = encode(replace(frames[0], further=(frames[1],)), "gif")
    pairs = """() => new Promise((done) => {
        const seen = new Set(), canvas = document.getElementById("canvas"), context = canvas.getContext("2d");
        const look = () => {
            const at = (x) => context.getImageData(x * canvas.width, canvas.height / 2, 1, 1).data[0] > 127;
            seen.add(`${at(0.4)} ${at(0.6)}`);
            if (seen.size > 1) done([...seen].sort()); else requestAnimationFrame(look);
        };
        look();
    })"""
    with page_of(browser, server) as page:
        give(page, ("moving.gif", moving))
        wait_until_done(page)
        assert page.evaluate(pairs) == ["false true", "true false"]  # each the other's negative at any moment
        page.get_by_role("button", name="Play").click()
        expect(page.locator("#play")).to_have_attribute("aria-pressed", "false")
    with page_of(browser, server, reduced_motion="reduce") as page:
        give(page, ("moving.gif", moving))
        wait_until_done(page)
        expect(page.locator("#play")).to_have_attribute("aria-pressed", "false")


def test_what_is_invented_is_shown_over_the_result(red: Page) -> None:
    """The negative of red is invented throughout: yellow over what is dimmed, and the number beside it."""
    red.get_by_role("button", name="Show what is invented").click()
    expect(red.locator("#invented-text")).to_have_text(re.compile(r"^Invented: \d+\.\d grey levels rms$"))
    red_level, green, blue = (
        min(255, round(level * (1 - 0xBB / 255)) + of_map)
        for level, of_map in zip(CYAN, (255, 240, 170), strict=True)
    )
    wait_for_colour(red, 0.7, (red_level, green, blue))  # yellow over what is dimmed
    wait_for_colour(red, 0.3, RED)
    expect(red.locator("#legend")).to_be_visible()
    red.get_by_role("button", name="Show what is invented").click()
    wait_for_colour(red, 0.7, CYAN)


# Choosing


def test_models_have_names_that_people_understand(browser: Browser) -> None:
    names = ("srgan-x4", "srresnet-x4", "srgan-x4-photo", "srresnet-x2")
    sent: list[dict[str, list[str]]] = []
    with negative_serving(names) as server, page_of(browser, server) as page:
        models = {
            model.name: replace(model, scale=2) if "x2" in model.name else model
            for model in server.service.models.listed
        }
        server.service.models.serve_only(
            {model: server.service.models.get(name) for name, model in models.items()}, ("srresnet-x4", "srgan-x4")
        )
        page.reload()
        page.on("request", lambda request: sent.append(parse_qs(urlsplit(request.url).query)))
        titles = page.locator("#models b")
        expect(titles).to_have_text(["Auto", "Sharp", "Faithful", "Clean up", "In between"])
        assert all(
            page.evaluate(
                "[...document.querySelectorAll('#models img')].map(({ naturalWidth }) => naturalWidth === 112)"
            )
        )
        assert all(text.strip() for text in page.locator("#models small").all_inner_texts())
        expect(page.get_by_role("radio", name="Auto")).to_be_checked()
        page.get_by_text("Faithful", exact=True).first.click()
        give(page, ("red.png", plain(*RED)))
        wait_until_done(page)
        expect(page.locator("#right-tag")).to_have_text("Faithful ×4")
        page.locator("#scale").select_option("×2")
        page.get_by_role("button", name="Apply to this picture").click()
        wait_until_done(page, 2)
        page.get_by_text("Auto", exact=True).click()
        page.get_by_role("button", name="Apply to this picture").click()
        wait_until_done(page, 3)
        expect(page.locator("#right-tag")).to_have_text("Auto (Sharp) ×2")
    upscaled = [query.get("model") for query in sent if "scale" in query and "region" not in query]
    assert upscaled == [["srresnet-x4"], ["srresnet-x2"], None]


def test_settings_are_remembered_and_metadata_is_kept_where_it_is_wanted(
    browser: Browser, server: Running
) -> None:
    sent: list[str] = []
    with page_of(browser, server) as page:
        page.on("request", lambda request: sent.append(urlsplit(request.url).query))
        page.get_by_text("nearest", exact=True).click()
        page.locator("#scale").select_option("2")
        page.locator("#format").select_option("JPEG")
        page.get_by_label("Quality").fill("70")
        page.get_by_role("switch", name="Keep place, time and camera").click()
        page.reload()
        expect(page.get_by_role("radio", name="nearest")).to_be_checked()
        expect(page.get_by_role("switch", name="Keep place, time and camera")).to_be_checked()
        give(page, ("red.png", plain(*RED)))
        wait_until_done(page)
    assert "model=nearest&scale=2&format=jpg&quality=70&metadata=keep" in sent


def test_settings_are_applied_to_all(page: Page) -> None:
    give(page, ("red.png", plain(*RED)), ("cyan.png", plain(*CYAN)))
    wait_until_done(page, 2)
    expect(page.locator("#apply")).to_be_hidden()
    page.get_by_text("nearest", exact=True).click()
    page.get_by_role("button", name="Apply to all 2").click()
    wait_until_done(page, 4)
    expect(page.locator("#right-tag")).to_have_text("nearest ×4")
    expect(page.locator("#apply")).to_be_hidden()


# Folders


@pytest.fixture
def holiday(tmp_path: Path) -> Path:
    """A folder with two pictures, one of them deeper, and what is none."""
    folder = tmp_path / "holiday"
    (folder / "day 2").mkdir(parents=True)
    (folder / "cat.png").write_bytes(plain(*RED))
    (folder / "day 2/cat.png").write_bytes(plain(*CYAN))
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(plain(*RED))
    return folder


@pytest.mark.parametrize("way", ["dropped", "chosen"])
def test_folders_keep_their_paths_in_the_archive(page: Page, holiday: Path, way: str) -> None:
    if way == "dropped":
        page.locator("#models input").first.wait_for(state="attached")
        devtools = page.context.new_cdp_session(page)
        for kind in ("dragEnter", "dragOver", "drop"):
            data = {"items": [], "files": [str(holiday)], "dragOperationsMask": 1}
            devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})
            if kind == "dragOver":
                expect(page.locator("body")).to_have_class(re.compile("dragging"))
    else:
        page.locator("#folder").set_input_files(holiday)
    wait_until_done(page, 2)
    expect(page.locator("#list li")).to_have_count(2)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all").click()
    with zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())) as archive:
        colours = {name: tuple(decode(archive.read(name)).pixels[9, 9]) for name in archive.namelist()}
    assert colours == {"holiday/cat_x4.png": CYAN, "holiday/day 2/cat_x4.png": RED}


# Second thoughts


def test_clear_can_be_undone(red: Page, server: Running) -> None:
    give(red, ("notes.png", b"no picture"))
    red.locator("#list li.failed").wait_for()
    worked = server.metric("srgan_pixels_out_total")
    red.get_by_role("button", name="Clear").click()
    expect(red.locator("#welcome")).to_be_visible()
    expect(red.locator("#said")).to_have_text("2 pictures removed")
    expect(red.get_by_role("button", name="Undo")).to_be_focused()
    assert red.evaluate(WHAT_IS_KEPT) == 0
    red.keyboard.press("Enter")
    wait_until_done(red)
    wait_for_colour(red, 0.7, CYAN)
    expect(red.locator("#list li.failed")).to_have_count(1)
    red.reload()
    wait_until_done(red)
    assert server.metric("srgan_pixels_out_total") == worked


def test_the_focus_never_falls_to_the_body(page: Page) -> None:
    def focused() -> str:
        found: str = page.evaluate("document.activeElement.id || document.activeElement.className || 'BODY'")
        return found

    give(page, ("a.png", plain(*RED)), ("b.png", plain(*CYAN)))
    wait_until_done(page, 2)
    page.get_by_text("nearest", exact=True).click()
    page.get_by_role("button", name="Apply to all").focus()
    page.keyboard.press("Enter")  # the button goes away
    wait_until_done(page, 4)
    assert focused() == "picture"
    page.locator(".picture").first.press("End")
    expect(page.locator(".picture").nth(1)).to_be_focused()
    expect(page.locator(".picture").nth(1)).to_have_attribute("aria-current", "true")
    page.locator("[title='Remove']:visible").first.press("Enter")
    assert focused() == "picture"
    page.locator("[title='Remove']:visible").first.press("Enter")
    assert focused() == "undo"
    expect(page.locator("#list li")).to_have_count(1)


# Screens


def test_a_telephone_keeps_the_picture_in_sight(browser: Browser, server: Running) -> None:
    """The strip is under it, a tap there shows another picture, and both stay while the rest goes by."""
    with page_of(browser, server, **PHONE) as page:
        give(page, ("red.png", plain(*RED)), ("cyan.png", plain(*CYAN)))
        wait_until_done(page, 2)
        page.get_by_role("button", name="cyan.png").tap()
        wait_for_colour(page, 0.7, RED)
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        stage, strip = (page.locator(name).bounding_box() for name in ("#stage", "#strip"))
        assert page.evaluate("scrollY") > 200
        assert stage["y"] == 0
        assert strip["y"] == pytest.approx(stage["height"], abs=1)
        assert strip["y"] + strip["height"] < 844 * 0.6
        page.get_by_role("button", name="red.png").first.tap()
        wait_for_colour(page, 0.7, CYAN)


CLIPPED = """() => {
    const isOut = ({ left, right, width }) => width > 1 && (left < -1 || right > innerWidth + 1);
    const isCut = (element) => !element.matches("select") && getComputedStyle(element).textOverflow !== "ellipsis"
        && element.clientWidth > 1 && element.scrollWidth > element.clientWidth + 1;
    return [...document.querySelectorAll("button, select, output, h1, h2, p, b, small, label, .tag, .state")]
        .filter((element) => element.getClientRects().length && !element.closest("#list"))
        .filter((element) => isOut(element.getBoundingClientRect()) || isCut(element))
        .map((element) => element.outerHTML.slice(0, 80));
}"""


@pytest.mark.parametrize("size", [(320, 568), (640, 360), (844, 390)], ids=["small", "zoomed", "lying"])
def test_nothing_is_clipped_on_small_screens(browser: Browser, server: Running, size: tuple[int, int]) -> None:
    """640×360 is a laptop's 1280×720 at 200 %."""
    width, height = size
    with page_of(browser, server, refused=(415,), viewport={"width": width, "height": height}) as page:
        assert page.evaluate(CLIPPED) == []
        give(page, ("a-picture-with-a-very-long-name-" * 3 + ".png", plain(*RED)), ("notes.txt", b"no picture"))
        wait_until_done(page)
        page.locator("#list li.failed").wait_for()
        assert page.evaluate(CLIPPED) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator("#stage").bounding_box()["height"] >= 120


def test_large_screens_are_used(browser: Browser, server: Running) -> None:
    with page_of(browser, server, viewport={"width": 2560, "height": 1440}) as page:
        give(page, ("red.png", plain(*RED)))
        wait_until_done(page)
        box = page.locator("#stage").bounding_box()
        assert box["width"] > 2560 * 0.8
        assert box["height"] > 1440 * 0.75
        assert page.evaluate("document.documentElement.scrollHeight") == 1440
        page.get_by_role("button", name="Full screen").click()
        until(lambda: page.evaluate("document.fullscreenElement?.id") == "viewer")
        expect(page.locator("#full")).to_have_attribute("aria-pressed", "true")
        page.get_by_role("button", name="Full screen").click()
        until(lambda: page.evaluate("document.fullscreenElement === null"))
