"""The page at `/`, in a real browser."""

from __future__ import annotations

import io
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
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
    colour_at,
    give,
    held,
    near,
    negative_serving,
    page_of,
    plain,
    playwright,
    shot,
    wait_for_colour,
    wait_until_done,
)
from support.serving import QUICK, Blocked, Running, levels, png, serving, settings_of, until

from srgan.pictures import Picture, decode, encode

axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="no axe: pip install axe-playwright-python"
)
expect = playwright.expect

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with negative_serving(limit_bytes=200_000) as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    with page_of(browser, server) as opened:
        yield opened


# Comparing


def test_the_slider_shows_the_original_left_and_the_result_right(red: Page) -> None:
    wait_for_colour(red, 0.3, RED)
    wait_for_colour(red, 0.7, CYAN)
    expect(red.locator("#left-tag")).to_have_text("Original")
    expect(red.locator("#right-tag")).to_have_text("Auto (negative) ×4")
    box = red.locator("#stage").bounding_box()
    red.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    red.mouse.down()
    red.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 90, steps=3)
    red.mouse.up()
    wait_for_colour(red, 0.7, RED)
    red.get_by_role("button", name="Side by side").click()
    wait_for_colour(red, 0.25, RED)
    wait_for_colour(red, 0.75, CYAN)


def test_both_sides_are_zoomed_and_moved_together(page: Page) -> None:
    quarters = np.zeros((32, 48, 3), np.uint8)
    quarters[:, 24:] = 200
    quarters[16:] += 40
    give(page, ("quarters.png", encode(Picture(quarters), "png")))
    wait_until_done(page)
    page.get_by_role("button", name="Side by side").click()
    seen = []
    for keys in ((), ("+", "+", "+", "+"), ("ArrowRight",) * 9, ("ArrowDown",) * 9, ("0",)):
        for key in keys:
            page.locator("#stage").press(key)
        left, right = ([colour_at(page, x + dx, y)[0] for dx in (0.1, 0.4) for y in (0.4, 0.6)] for x in (0, 0.5))
        assert near(tuple(left), tuple(255 - value for value in right)), keys
        seen.append(left)
    assert seen[0] == [0, 40, 200, 240]
    assert seen[2] == [200, 240, 200, 240]  # the right half alone
    assert seen[3] == [240, 240, 240, 240]  # its lower quarter
    assert seen[4] == seen[0]


def test_every_download_is_the_service_s_with_the_strength_that_is_chosen(
    browser: Browser, server: Running
) -> None:
    """Of animations and of formats that browsers do not write, alone and in the archive."""
    frames = [Picture(levels(24, 30, seed), duration_ms=100.0) for seed in range(3)]
    moving = encode(replace(frames[0], further=tuple(frames[1:])), "webp")
    scan = encode(Picture(levels(24, 30)), "tiff")
    with page_of(browser, server) as page:
        page.locator("#format").select_option("TIFF")
        give(page, ("noise.tif", scan))
        wait_until_done(page)
        page.locator("#format").select_option("auto")
        give(page, ("moving.webp", moving))
        wait_until_done(page, 2)
        page.locator("#strength").fill("40")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download", exact=True).click()
        assert download.value.suggested_filename == "noise_x4_strength40.tiff"
        alone = Path(download.value.path()).read_bytes()
        page.get_by_role("button", name="moving.webp Done").click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Download moving.webp").click()
        assert download.value.suggested_filename == "moving_x4_strength40.webp"
        animation = Path(download.value.path()).read_bytes()
        with page.expect_download() as download:
            page.get_by_role("button", name="Download all").click()
        with zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())) as archive:
            packed = {name: archive.read(name) for name in archive.namelist()}
    ask = server.client.post
    assert alone == ask("/v1/upscale?strength=0.4&format=tiff", content=scan).content
    assert animation == ask("/v1/upscale?strength=0.4", content=moving).content
    assert len(decode(animation).frames) == 3
    assert packed == {"noise_x4_strength40.tiff": alone, "moving_x4_strength40.webp": animation}


def test_a_result_that_browsers_cannot_show_is_shown_by_a_preview(browser: Browser, server: Running) -> None:
    with page_of(browser, server) as page:
        page.locator("#format").select_option("TIFF")
        give(page, ("red.png", plain(*RED)))
        wait_until_done(page)
        expect(page.locator("#right-tag")).to_have_text("Auto (negative) ×4 TIFF")
        wait_for_colour(page, 0.3, RED)
        wait_for_colour(page, 0.7, CYAN)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download", exact=True).click()
        assert decode(Path(download.value.path()).read_bytes()).format == "tiff"


def test_what_cannot_be_shown_at_all_is_not_called_a_result(browser: Browser, server: Running) -> None:
    """The original is in its place then, under its own name."""
    with page_of(browser, server, refused=(413,)) as page:
        page.route(re.compile("/v1/upscale.*format=png"), lambda route: route.fulfill(status=413, json={}))
        page.locator("#format").select_option("TIFF")
        give(page, ("red.png", plain(*RED)))
        wait_until_done(page)
        expect(page.locator("#right-tag")).to_have_text(
            "Original, as this browser cannot show Auto (negative) ×4 TIFF"
        )
        wait_for_colour(page, 0.7, RED)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download", exact=True).click()
        assert decode(Path(download.value.path()).read_bytes()).format == "tiff"


def test_what_is_said_is_seen_by_everybody(browser: Browser, server: Running) -> None:
    with page_of(browser, server) as page:
        give(page, ("red.png", plain(*RED)))
        wait_until_done(page)
        message = page.locator("#said")
        expect(message).to_have_text("red.png is done")
        box = message.bounding_box()
        assert min(box["width"], box["height"]) > 20
        assert message.evaluate("element => getComputedStyle(element).opacity") == "1"


def test_a_server_that_cannot_be_reached_is_said(browser: Browser, server: Running) -> None:
    with page_of(browser, server) as page:
        page.locator("#models input").first.wait_for(state="attached")
        page.route("**/v1/upscale*", lambda route: route.abort("failed"))
        expect(page.locator("#offline")).to_be_hidden()
        give(page, ("red.png", plain(*RED)))
        expect(page.locator("#offline")).to_be_visible()
        expect(page.locator("#versions .state")).to_contain_text("The service cannot be reached. Trying again in")
        page.unroute("**/v1/upscale*")
        wait_until_done(page)
        expect(page.locator("#offline")).to_be_hidden()


def test_any_two_models_or_settings_are_compared(red: Page) -> None:
    red.locator("#left").select_option("Make with nearest")
    wait_until_done(red, 2)
    expect(red.locator("#left-tag")).to_have_text("nearest ×4")
    red.locator("#handle").press("End")
    wait_for_colour(red, 0.5, RED)
    red.locator("#scale").select_option("2")
    red.get_by_role("button", name="Apply to this picture").click()
    wait_until_done(red, 3)
    expect(red.locator("#right-tag")).to_have_text("Auto (negative) ×2")
    red.locator("#handle").press("Home")
    wait_for_colour(red, 0.5, CYAN)
    red.get_by_role("button", name="Remove red.png, Auto (negative) ×2").click()
    expect(red.locator("#versions li.done")).to_have_count(2)


def test_quality_size_and_balance_are_the_service_s(browser: Browser) -> None:
    sent: list[dict[str, list[str]]] = []

    def asked(request: Any) -> None:
        if "/v1/upscale?" in request.url:
            sent.append(parse_qs(urlsplit(request.url).query))

    with negative_serving() as server, page_of(browser, server) as page:
        page.on("request", asked)
        page.get_by_text("In between").click()
        page.locator("#balance").fill("25")
        page.locator("#scale").select_option("Longer side")
        page.locator("#long_side").fill("80")
        page.locator("#format").select_option("JPEG")
        page.get_by_label("Quality").fill("40")
        give(page, ("red.png", plain(*RED)))
        wait_until_done(page)
        wait_for_colour(page, 0.7, RED)
        expect(page.locator("#right-tag")).to_have_text("In between 25 % 80 px JPG quality 40")
        assert sent == [{"balance": ["0.25"], "long_side": ["80"], "format": ["jpg"], "quality": ["40"]}]
        with page.expect_download() as download:
            page.get_by_role("button", name="Download", exact=True).click()
        assert download.value.suggested_filename == "red_80px.jpg"
        assert decode(Path(download.value.path()).read_bytes()).width == 80
        page.locator("#format").select_option("PNG")
        expect(page.locator("#quality")).to_be_hidden()
        page.locator("#left").select_option("Make with negative")
        wait_until_done(page, 2)
        expect(page.locator("#left-tag")).to_have_text("negative 80 px PNG")


def test_what_was_lost_is_said(browser: Browser, tmp_path: Path) -> None:
    """Whether the picture came at once or as a job, and after a reload."""
    settings: dict[str, Any] = {**QUICK, "data_dir": str(tmp_path)}
    deep = encode(Picture(np.full((500, 600, 3), 40_000, np.uint16)), "png")
    with negative_serving(**settings) as server, page_of(browser, server) as page:
        page.locator("#format").select_option("JPEG")
        give(
            page, ("small.png", encode(Picture(np.full((9, 9, 3), 40_000, np.uint16)), "png")), ("large.png", deep)
        )
        wait_until_done(page, 2)
        for _ in range(2):
            notes = page.locator("#versions .note")
            expect(notes).to_have_text([re.compile("^JPEG is written with 8 bits per channel")] * 2)
            page.reload()


# In and out


def test_pictures_are_dropped_pasted_and_downloaded_as_one_archive(page: Page) -> None:
    given = """([kind, content]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(content)], "cat.png", { type: "image/png" }));
        const event = kind === "drop" ? new DragEvent(kind, { dataTransfer: transfer, bubbles: true })
            : new ClipboardEvent(kind, { clipboardData: transfer, bubbles: true });
        document.body.dispatchEvent(event);
    }"""
    page.locator("#models input").first.wait_for(state="attached")
    page.evaluate(given, ["drop", list(plain(*RED))])
    page.evaluate(given, ["paste", list(plain(*CYAN))])
    wait_until_done(page, 2)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all").click()
    with zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["cat_x4-2.png", "cat_x4.png"]
        colours = {tuple(decode(archive.read(name)).pixels[9, 9]) for name in archive.namelist()}
    assert colours == {RED, CYAN}


@pytest.mark.slow
def test_what_browsers_cannot_show_is_shown_all_the_same(page: Page) -> None:
    give(page, ("scan.tif", encode(Picture(np.full((30, 40, 3), RED, np.uint8)), "tiff")))
    wait_until_done(page)
    wait_for_colour(page, 0.3, RED)
    wait_for_colour(page, 0.7, CYAN)


def test_pictures_and_results_are_there_after_a_reload(red: Page, server: Running) -> None:
    worked = server.metric("srgan_pixels_out_total")
    red.reload()
    wait_until_done(red)
    wait_for_colour(red, 0.3, RED)
    wait_for_colour(red, 0.7, CYAN)
    assert server.metric("srgan_pixels_out_total") == worked
    red.get_by_role("button", name="Clear").click()
    assert red.evaluate(WHAT_IS_KEPT) == 0
    red.reload()
    expect(red.locator("#welcome")).to_be_visible()


@pytest.mark.slow
def test_what_a_reload_interrupts_is_done_after_it(browser: Browser) -> None:
    blocked = Blocked()
    with negative_serving(before=blocked) as server, page_of(browser, server) as page:
        give(page, ("red.png", plain(*RED)))
        expect(page.locator("#versions .state")).to_contain_text("Working")
        page.reload()
        expect(page.locator("#versions .state")).to_contain_text("Working")
        blocked.let_go()
        wait_until_done(page)
        wait_for_colour(page, 0.7, CYAN)


def test_a_reload_finds_a_running_job_again(browser: Browser, tmp_path: Path) -> None:
    working = threading.Event()
    working.set()
    settings: dict[str, Any] = {**QUICK, "data_dir": str(tmp_path)}
    with (
        negative_serving(before=lambda: working.wait(60), **settings) as server,
        page_of(browser, server) as page,
    ):
        working.clear()
        give(page, ("large.png", plain(*RED, height=500, width=600)))
        expect(page.locator("#versions .state")).to_contain_text("Working")
        page.reload()
        expect(page.locator("#versions .state")).to_contain_text("Working")
        working.set()
        wait_until_done(page)
        wait_for_colour(page, 0.7, CYAN)
        assert len(server.client.get("/v1/jobs").json()["jobs"]) == 1
        page.get_by_role("button", name="Clear").click()
        until(lambda: not server.client.get("/v1/jobs").json()["jobs"])  # it had ended


@pytest.mark.slow
def test_a_long_picture_says_how_long_it_will_take(browser: Browser, tmp_path: Path) -> None:
    settings: dict[str, Any] = {**QUICK, "data_dir": str(tmp_path), "tile_lr_px": 32}
    with negative_serving(before=lambda: time.sleep(0.02), **settings) as server, page_of(browser, server) as page:
        give(page, ("large.png", plain(*RED, height=500, width=600)))
        state = page.locator("#versions .state")
        expect(state).to_have_text(re.compile(r"^Working, about \d+ s left$"), timeout=30_000)
        assert 0 < float(page.locator("#versions progress").get_attribute("value") or 0) < 1
        wait_until_done(page, seconds=100)


def test_tabs_have_one_queue_and_one_list(browser: Browser) -> None:
    """What one tab makes the other shows and does not make again, and what one removes stays removed."""
    blocked = Blocked()
    with negative_serving(before=blocked) as server, page_of(browser, server) as first:
        give(first, ("red.png", plain(*RED)))
        assert blocked.entered.acquire(timeout=30)
        second = first.context.new_page()
        second.goto(first.url)
        expect(second.locator("#versions .state")).to_have_text("In work in another tab")
        blocked.let_go()
        for tab in (first, second):
            wait_until_done(tab)
            wait_for_colour(tab, 0.7, CYAN)
        assert server.metric('srgan_requests_total{method="POST"') == 1
        give(second, ("blue.png", plain(*CYAN)))
        wait_until_done(first, 2)
        wait_until_done(second, 2)
        assert server.metric('srgan_requests_total{method="POST"') == 2
        first.get_by_role("button", name="Clear").click()
        expect(second.locator("#welcome")).to_be_visible()
        give(second, ("red.png", plain(*RED)))
        wait_until_done(first)
        assert first.evaluate(WHAT_IS_KEPT) == 1


# Refusals


def test_refusals_say_why(browser: Browser, server: Running) -> None:
    with page_of(browser, server, refused=(413, 415, 422)) as page:
        give(page, ("notes.txt", b"not a picture"), ("large.png", bytes(300_000)), ("cut.png", png()[:60]))
        states = page.locator("#versions li.failed .state")
        expect(states).to_have_count(3)
        assert "not supported" in states.nth(0).inner_text()
        assert states.nth(1).inner_text() == "This file is too large: the service takes up to 200 kB."
        assert "cannot be read" in states.nth(2).inner_text()
        expect(page.locator("#busy")).to_contain_text("not supported")
        expect(page.get_by_title("Try again")).to_have_count(3)
        expect(page.locator("[title='Try again']:visible")).to_have_count(0)  # the same file would fail again
        give(page, ("red.png", plain(*RED)))
        wait_until_done(page)


def test_a_full_queue_is_waited_for(browser: Browser) -> None:
    blocked = Blocked()
    with (
        negative_serving(before=blocked, queue_requests=1) as server,
        page_of(browser, server, refused=(503,)) as page,
    ):
        give(page, ("one.png", plain(*RED)), ("two.png", plain(*CYAN)))
        assert blocked.entered.acquire(timeout=30)
        expect(page.locator("#versions")).to_contain_text("The queue is full")
        expect(page.locator("#versions")).to_contain_text("Trying again in 1 s")
        blocked.let_go()
        wait_until_done(page, 2)
        assert server.metric('srgan_rejections_total{code="queue-full"') >= 1


def test_a_key_is_asked_for_and_kept_in_this_tab_alone(browser: Browser) -> None:
    key = "a-key-of-enough-characters"
    with negative_serving(keys=f"me:{key}") as server, page_of(browser, server, refused=(401,)) as page:
        field = page.get_by_label("This service asks for an API key")
        expect(field).to_be_focused()
        give(page, ("red.png", plain(*RED)))
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-note")).to_have_text("That key is not accepted.")
        field.fill(key)
        page.keyboard.press("Enter")
        wait_until_done(page)
        expect(field).to_be_hidden()
        assert key in page.evaluate("JSON.stringify(sessionStorage)")
        assert key not in page.evaluate("JSON.stringify(localStorage) + document.cookie + document.body.innerHTML")
        page.reload()
        wait_until_done(page)
        expect(field).to_be_hidden()


# For everybody


def test_everything_goes_by_keyboard(page: Page) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.locator(selector).evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"{selector} is not reached")

    page.on("filechooser", lambda _: None)  # caught from here on; only as of a key press, some come too early
    tab_to("#files")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([{"name": "red.png", "mimeType": "image/png", "buffer": plain(*RED)}])
    wait_until_done(page)
    tab_to("#handle")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
    expect(page.locator("#handle")).to_have_attribute("aria-valuenow", "80")
    wait_for_colour(page, 0.7, RED)
    tab_to("#strength")
    page.keyboard.press("Home")
    expect(page.locator("#strength-value")).to_have_text("0 %")
    wait_for_colour(page, 0.85, RED)  # bicubic
    tab_to("#save")
    with page.expect_download():
        page.keyboard.press("Enter")
    tab_to(".picture")
    tab_to("[aria-label^='Remove']")
    page.keyboard.press("Enter")
    expect(page.locator("#welcome")).to_be_visible()


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark", **PHONE}], ids=["light", "dark-phone"])
def test_axe_finds_nothing(
    browser: Browser, server: Running, options: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with page_of(browser, server, refused=(415,), **options) as page:
        page.locator("#models").filter(has_text="What negative does.").wait_for()

        def look() -> None:
            report = axe.Axe().run(page)
            assert report.violations_count == 0, report.generate_report()

        look()
        page.locator("#scale").select_option("Longer side")
        page.get_by_text("In between").click()
        page.locator("#balance").fill("25")
        page.locator("#long_side").fill("160")
        look()
        with held(page):
            give(page, ("red.png", plain(*RED)), ("notes.txt", b"not a picture"))
            expect(page.locator("#busy")).to_be_visible()
            look()  # working
        wait_until_done(page)
        page.locator("#list li.failed").first.wait_for()
        look()  # done, with a part that failed
        page.get_by_role("button", name="notes.txt").click()
        expect(page.locator("#busy")).to_contain_text("not supported")
        look()
        page.get_by_role("button", name="red.png").first.click()
        page.get_by_role("button", name="Show what is invented").click()
        expect(page.locator("#invented-text")).to_contain_text("levels")
        look()
        shot(page, tmp_path, f"colours-{request.node.callspec.id}", full_page=True)
        page.get_by_role("button", name="Clear").click()
        expect(page.get_by_role("button", name="Undo")).to_be_visible()
        look()
        page.route("**/v1/upscale*", lambda route: route.abort("failed"))
        give(page, ("red.png", plain(*RED)))
        expect(page.locator("#offline")).to_be_visible()
        look()
        page.unroute("**/v1/upscale*")


def test_a_phone_shows_all_of_it(browser: Browser, server: Running) -> None:
    with page_of(browser, server, **PHONE) as page:
        give(page, ("a-picture-with-a-very-long-name-" * 4 + ".png", plain(*RED)))
        wait_until_done(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        box = page.locator("#stage").bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2)
        wait_for_colour(page, 0.8, RED)
        small = [
            control.get_attribute("id")
            for control in page.locator("button:visible, select:visible").all()
            if min(control.bounding_box()["height"], control.bounding_box()["width"]) < 43.5
        ]
        assert small == []  # what a finger hits


def test_the_policy_forbids_everything_else(server: Running) -> None:
    answer = server.client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "<style" not in answer.text
    assert " style=" not in answer.text
    assert "http" not in answer.text.replace("http-equiv", "")
    again = server.client.get("/static/app.js")
    assert "javascript" in again.headers["content-type"]
    tagged = server.client.get("/static/app.js", headers={"If-None-Match": again.headers["etag"]})
    assert tagged.status_code == 304
    assert server.client.get("/v1/upscale").status_code == 405  # not hidden by the page's files
    assert server.client.get("/static/../app.py").status_code == 404


@pytest.mark.slow
def test_a_photograph_by_the_bundled_model(browser: Browser, tmp_path: Path) -> None:
    """Screenshots to be looked at; `SRGAN_SCREENSHOTS` names a folder for them."""
    with serving(settings_of(model="srgan-x4")) as server, page_of(browser, server) as page:
        page.locator("#models input").first.wait_for(state="attached")
        shot(page, tmp_path, "empty")
        cat = ("chelsea.png", (EXAMPLES / "chelsea.png").read_bytes())
        give(page, cat, ("rocket.jpg", (EXAMPLES / "rocket.jpg").read_bytes()))
        wait_until_done(page, 2, seconds=150)
        assert page.evaluate("document.getElementById('list').innerText").count("Done") == 2
        shot(page, tmp_path, "desktop-half-way")
        page.emulate_media(color_scheme="dark")
        shot(page, tmp_path, "desktop-dark")
        page.set_viewport_size(PHONE["viewport"])
        shot(page, tmp_path, "phone-dark", full_page=True)
        page.emulate_media(color_scheme="light")
        shot(page, tmp_path, "phone", full_page=True)
        assert all(page.evaluate("[...document.images].map(image => image.naturalWidth > 0)"))
