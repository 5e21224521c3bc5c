"""The page without a server, in a real browser, against what the program makes of the same pictures.

ONNX Runtime Web is taken from `SRGAN_RUNTIME`, the path of its npm package, or from npm's cache; nothing is
fetched.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.browser import Browser, Page, chromium, give, playwright, shot, wait_until_done

from srgan import Upscaler
from srgan.commands import page as page_command
from srgan.upscale import Request

# A processor pretends to be a graphics processor; the page takes such a one only where it is asked to.
SOFTWARE_GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--use-vulkan=swiftshader")
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
UPSCALE = """async ([bytes, type, settings]) => {
    const { upscale } = await import("/static/api.js"), stages = [];
    const file = new Blob([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], { type });
    const tell = (_, fraction) => stages.push(fraction);
    const failed = (error) => ({ warnings: [error.message] });
    const { blob, warnings, model } = await upscale(file, settings, tell).catch(failed);
    if (!blob) return { warnings, bytes: "", stages };
    const url = await new Promise((done) => {
        const reader = Object.assign(new FileReader(), { onload: () => done(reader.result) });
        reader.readAsDataURL(blob);
    });
    return { warnings, model, stages, type: blob.type, bytes: url.split(",")[1] };
}"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The npm package, or a skip that says how it is had."""
    named = os.environ.get("SRGAN_RUNTIME")
    if named:
        return Path(named)
    folder, npm = tmp_path_factory.mktemp("npm"), shutil.which("npm")
    if npm:
        pack = [npm, "pack", page_command.RUNTIME, "--offline", "--loglevel=error"]
        subprocess.run(pack, cwd=folder, capture_output=True, check=False)
    for path in folder.glob("*.tgz"):
        return path
    pytest.skip(
        "THE PAGE WITHOUT A SERVER IS NOT TESTED: no ONNX Runtime Web; "
        f"`npm pack {page_command.RUNTIME}` once, or name its file in SRGAN_RUNTIME"
    )


@pytest.fixture(scope="module")
def site(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    page_command.page(out, runtime)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(*SOFTWARE_GPU) as running:
        yield running


@contextlib.contextmanager
def served(folder: Path, headers: dict[str, str]) -> Iterator[str]:
    """Serve the files as `python -m http.server` does, with `headers` beside its own."""

    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in headers.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def opened(
    browser: Browser, site: Path, query: str = "", headers: dict[str, str] | None = None, layer_bytes: str = ""
) -> Iterator[Page]:
    """Open the page. What goes wrong in it fails, and so does any request to elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    context.set_default_timeout(240_000)
    wrong: list[str] = []

    def heard(message: Any) -> None:
        if message.type == "error":
            wrong.append(message.text)

    def asked(url: str, home: str) -> None:
        if not url.startswith((home, "blob:", "data:")):
            wrong.append(url)

    try:
        with served(site, headers or {}) as home:
            if layer_bytes:  # so little that a small picture is cut into tiles
                worker = (site / "static" / "local_worker.js").read_text(encoding="utf-8")
                less = worker.replace("MOST_LAYER_BYTES = 400e6", f"MOST_LAYER_BYTES = {layer_bytes}")
                assert less != worker
                answer = {"body": less, "content_type": "text/javascript"}
                context.route("**/local_worker.js", lambda route: route.fulfill(**answer))
            page = context.new_page()
            page.on("console", heard)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            context.on("request", lambda request: asked(request.url, home))
            page.goto(home + query)
            playwright.expect(page.locator("#backend")).to_contain_text("Computes here", timeout=240_000)
            yield page
            context.close()
    finally:
        assert not wrong, wrong


def computes(page: Page) -> str:
    return str(page.locator("#backend").inner_text())


def photograph(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width] / 5
    waves = np.stack([np.sin(x + y), np.cos(2 * x - y), np.sin(3 * y + x)], axis=-1)
    return (waves * 140 + 128).clip(0, 255).astype(np.uint8)


def file_of(levels: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, format, **options)
    return buffer.getvalue()


def upscaled(page: Page, content: bytes, type: str = "image/png", **settings: Any) -> dict[str, Any]:
    encoded = base64.b64encode(content).decode()
    told: dict[str, Any] = page.evaluate(UPSCALE, [encoded, type, {"format": "png", **settings}])
    return told


def levels_of(told: dict[str, Any]) -> np.ndarray:
    assert told["bytes"], told["warnings"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(told["bytes"]))).convert("RGB")).astype(int)


def differs(told: dict[str, Any], levels: np.ndarray, model: str = "srgan-x4", **request: Any) -> int:
    """By how many levels the page's result differs from the program's, at most."""
    expected = Upscaler(model, precision="fp32").upscale(levels, Request(**request))
    if expected.ndim == 2:
        expected = np.repeat(expected[..., None], 3, axis=2)
    return int(np.abs(levels_of(told) - expected).max())


def test_a_picture_that_is_given_is_that_of_the_command_line(browser: Browser, site: Path, tmp_path: Path) -> None:
    levels = photograph(17, 22)
    with opened(browser, site) as page:
        assert computes(page).startswith("Computes here by WebAssembly, one thread (no ")
        give(page, ("waves.png", file_of(levels)))
        wait_until_done(page, seconds=240)
        shot(page, tmp_path, "local-page")
        with page.expect_download() as downloading:
            page.locator("#save").click()
        result = downloading.value
        assert result.suggested_filename == "waves_x4.png"
        content = Path(result.path()).read_bytes()
    assert differs({"bytes": base64.b64encode(content)}, levels) <= 1


@pytest.mark.slow
def test_sizes_greys_strengths_and_models_are_those_of_the_program(browser: Browser, site: Path) -> None:
    levels = photograph(12, 15)
    with opened(browser, site) as page:
        told = upscaled(page, file_of(levels), model="srresnet-x2", scale="2")
        assert (told["model"], told["warnings"]) == ("srresnet-x2", [])
        assert differs(told, levels, "srresnet-x2") <= 1
        # Pillow resamples with rounded weights, which back-projection carries on.
        # Beyond the model's scale it runs again, on a result that differs by a level here and there.
        for scale, most in ((2, 2), (3, 2), (8, 3)):
            assert differs(upscaled(page, file_of(levels), scale=str(scale)), levels, scale=scale) <= most
        assert differs(upscaled(page, file_of(levels), long_side=50), levels, long_side_px=50) <= 2
        assert differs(upscaled(page, file_of(levels), strength=0.5), levels, strength=0.5) <= 1
        grey = levels[..., 0]
        assert differs(upscaled(page, file_of(grey)), grey) <= 1
        smaller = upscaled(page, file_of(levels), long_side=7)
        assert differs(smaller, levels, long_side_px=7) <= 1
        assert smaller["warnings"] == ["it is larger than what was asked for, so it was reduced without the model"]


@pytest.mark.slow
def test_lossy_files_get_the_model_for_them_and_what_is_lost_is_told(browser: Browser, site: Path) -> None:
    levels, exif = photograph(8, 8), Image.Exif()
    exif[0x010F] = "Maker"
    sixteen = io.BytesIO()
    Image.fromarray(levels[..., 0].astype(np.uint16) * 257).save(sixteen, "PNG")
    with opened(browser, site) as page:
        for quality, model in ((95, "srgan-x4-photo"), (96, "srgan-x4")):
            jpeg = file_of(levels, "JPEG", quality=quality, exif=exif)
            told = upscaled(page, jpeg, "image/jpeg", format="auto")
            assert told["model"] == model
            assert told["warnings"] == ["its EXIF data was not kept"]
            assert told["type"] == "image/jpeg"
        assert upscaled(page, file_of(levels, "WEBP"))["model"] == "srgan-x4-photo"
        assert upscaled(page, file_of(levels, "WEBP", lossless=True))["model"] == "srgan-x4"
        assert upscaled(page, sixteen.getvalue())["warnings"] == ["its 16 bits became 8"]
        frames = [Image.fromarray(levels), Image.fromarray(255 - levels)]
        moving = io.BytesIO()
        frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:], loop=0)
        told = upscaled(page, moving.getvalue(), "image/gif")
        assert told["warnings"] == ["it is an animation, of which this is the first frame"]
        clear = np.dstack([levels, np.full((8, 8), 200, np.uint8)])
        assert re.search("transparent parts.*srgan upscale", upscaled(page, file_of(clear))["warnings"][0])
        assert re.search("cannot read it", upscaled(page, b"II*\0 a TIFF")["warnings"][0])
        wide = file_of(np.zeros((1, 5000, 3), np.uint8))
        assert re.search("too many for this page", upscaled(page, wide)["warnings"][0])


@pytest.mark.slow
def test_tiles_are_the_whole_and_progress_is_told(browser: Browser, site: Path) -> None:
    levels = photograph(8, 200)
    with opened(browser, site, layer_bytes="4e6") as page:
        told = upscaled(page, file_of(levels), model="srgan-x4-photo")
        assert told["stages"] == [None, 0, pytest.approx(1 / 3), pytest.approx(2 / 3)]
        assert differs(told, levels, "srgan-x4-photo") <= 1


@pytest.mark.slow
def test_work_is_stopped_at_once_and_the_next_picture_is_made(browser: Browser, site: Path) -> None:
    stop = """async (bytes) => {
        const { upscale } = await import("/static/api.js"), stopping = new AbortController();
        const file = new Blob([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))]);
        const tell = (_, fraction) => fraction > 0 && stopping.abort();
        return upscale(file, {}, tell, stopping.signal).then(() => "done", (error) => error.name);
    }"""
    long = base64.b64encode(file_of(photograph(8, 2000))).decode()
    levels = photograph(8, 8)
    with opened(browser, site, layer_bytes="6e6") as page:
        assert page.evaluate(stop, long) == "AbortError"
        assert differs(upscaled(page, file_of(levels)), levels) <= 1


@pytest.mark.slow
def test_threads_are_used_where_the_page_is_isolated(browser: Browser, site: Path) -> None:
    levels = photograph(12, 15)
    with opened(browser, site, headers=ISOLATED) as page:
        assert re.match(r"Computes here by WebAssembly, (\d+|one) threads? ", computes(page))
        assert page.evaluate("crossOriginIsolated")
        assert differs(upscaled(page, file_of(levels)), levels) <= 1


@pytest.mark.slow
def test_webgpu_computes_all_of_it_where_it_is_asked_for(browser: Browser, site: Path, tmp_path: Path) -> None:
    levels = photograph(12, 15)
    with opened(browser, site, "?backend=webgpu") as page:
        assert computes(page).startswith("Computes here by WebGPU (")
        assert differs(upscaled(page, file_of(levels)), levels) <= 1
        shot(page, tmp_path, "local-page-webgpu")
    with opened(browser, site, "?backend=wasm") as page:
        assert computes(page).endswith("(as asked for)")
