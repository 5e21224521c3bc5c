"""`srgan.Client` and clients that others generate, against a service that runs."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.serving import QUICK, Running, free_port, levels, png, serving

from srgan import AsyncClient, Client
from srgan.client import ServiceError
from srgan.errors import UsageError
from srgan.pictures import decode

DOCS = Path(__file__).parents[2] / "docs"
KEY = "k" * 32


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("jobs")
    with serving(data_dir=str(folder), keys=f"ann:{KEY}", **QUICK) as server:
        yield server


@pytest.fixture
def url(running: Running) -> str:
    return f"http://127.0.0.1:{running.port}"


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, KEY) as client:
        yield client


def test_a_picture_comes_back_larger(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    for source in (png(), tmp_path / "a.png", str(tmp_path / "a.png")):
        answer = client.upscale(source)
        assert (answer.media_type, answer.model, answer.warnings) == ("image/png", "nearest-x4", "")
        np.testing.assert_array_equal(decode(answer.content).pixels, levels(6, 5).repeat(4, 0).repeat(4, 1))
    assert decode(client.upscale(png(), scale=2, format="webp").save(tmp_path / "b.webp")).width == 10
    assert [model["name"] for model in client.models()] == ["nearest-x4"]


def test_a_job_is_watched_and_fetched_in_its_order(client: Client, tmp_path: Path) -> None:
    seen: list[float] = []
    names = ["z.png", "a.png", "m.png"]
    for seed, name in enumerate(names):
        (tmp_path / name).write_bytes(png(seed=seed))
    job = client.submit([tmp_path / name for name in names])
    ended = client.wait(job.id, seen.append)
    assert (ended.status, ended.progress, seen[-1], ended.has_ended) == ("completed", 1.0, 1.0, True)
    assert [file["name"] for file in ended.files] == names
    with zipfile.ZipFile(client.fetch(job.id, tmp_path / "all.zip")) as archive:
        assert [name.partition("_")[0] for name in archive.namelist()] == ["z", "a", "m"]
        for seed, name in enumerate(archive.namelist()):
            larger = levels(6, 5, seed).repeat(4, 0).repeat(4, 1)
            np.testing.assert_array_equal(decode(archive.read(name)).pixels, larger)
    client.cancel(job.id)
    with pytest.raises(ServiceError) as gone:
        client.fetch(job.id, tmp_path / "none.zip")
    assert (gone.value.code, (tmp_path / "none.zip").exists()) == ("not-found", False)


def test_problems_are_exceptions_with_their_code(client: Client, url: str) -> None:
    strange, absent = Client(url, "wrong"), Client(f"http://127.0.0.1:{free_port()}")
    for call, code, status in (
        (lambda: client.upscale(b"hello"), "unsupported-format", 415),
        (lambda: client.upscale(png(), scale=99), "invalid-parameter", 422),
        (lambda: client.job("none"), "not-found", 404),
        (strange.models, "unauthorized", 401),
        (absent.models, "unreachable", 0),
    ):
        with pytest.raises(ServiceError) as raised:
            call()
        assert (raised.value.code, raised.value.status) == (code, status)
        assert bool(raised.value.request_id) == (status > 0)
    strange.close()
    absent.close()
    failed = client.submit([png()[:60]])
    with pytest.raises(ServiceError, match=r"job .*: .*damaged"):
        client.wait(failed.id)
    with pytest.raises(UsageError, match="a list"):
        client.submit("photo.jpg")


def test_the_same_awaited(url: str, tmp_path: Path) -> None:
    async def everything() -> None:
        async with AsyncClient(url, KEY) as client:
            assert len(await client.models()) == 1
            both = await asyncio.gather(client.upscale(png()), client.upscale(png(seed=1)))
            assert [decode(answer.content).width for answer in both] == [20, 20]
            job = await client.submit([png()])
            await client.wait(job.id)
            assert decode(await client.fetch(job.id, tmp_path / "a.png")).width == 20
            await client.cancel(job.id)
            with pytest.raises(ServiceError) as gone:
                await client.fetch(job.id, tmp_path / "b.png")
            assert gone.value.code == "not-found"

    asyncio.run(everything())


def test_the_documents_lines_run(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```py\n(.*?)```", (DOCS / "library.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(png())
    printed: list[object] = []
    text = block.replace("http://127.0.0.1:8000", url).replace("key=None", f"key={KEY!r}")
    exec(text, {"print": lambda *words: printed.append(words)})
    assert printed[-1] == ("unsupported-format", None)
    assert len(zipfile.ZipFile("larger.zip").namelist()) == 2


# What others make of the document


@pytest.mark.slow
def test_a_generated_client_upscales(
    running: Running, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = shutil.which("openapi-python-client")
    if command is None:
        pytest.skip("no generator: pip install openapi-python-client")
    (tmp_path / "openapi.json").write_bytes(running.client.get("/openapi.json").content)
    done = subprocess.run(
        [command, "generate", "--path", "openapi.json", "--output-path", "made", "--meta", "none"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{Path(command).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "arning" not in done.stdout
    pytest.importorskip("attrs", reason="what is generated needs attrs")
    monkeypatch.syspath_prepend(tmp_path)
    made: Any = importlib.import_module("made")
    call: Any = importlib.import_module("made.api.pictures.upscale")
    types: Any = importlib.import_module("made.types")
    body: Any = importlib.import_module("made.models")
    with made.AuthenticatedClient(base_url=url, token=KEY, httpx_args={"trust_env": False}) as client:
        raw = call.sync_detailed(client=client, body=types.File(payload=BytesIO(png())), scale=2)
        form = call.sync_detailed(
            client=client, body=body.UpscaleFilesBody(image=types.File(BytesIO(png()), "a.png"))
        )
    assert [decode(answer.content).width for answer in (raw, form)] == [10, 20]
    assert decode(raw.parsed.payload.read()).width == 10


@pytest.mark.slow
def test_the_document_has_no_fault(running: Running, tmp_path: Path) -> None:
    command = shutil.which("redocly")
    if command is None:
        pytest.skip("no linter: npm install -g @redocly/cli")
    (tmp_path / "openapi.json").write_bytes(running.client.get("/openapi.json").content)
    done = subprocess.run([command, "lint", "openapi.json", "--format", "json"], cwd=tmp_path, capture_output=True)
    assert json.loads(done.stdout)["totals"] == {"errors": 0, "warnings": 0, "ignored": 0}
