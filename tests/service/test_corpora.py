"""Every odd and hostile file that there is, and every request that the OpenAPI document allows or forbids."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support.serving import QUICK, Running, serving

from srgan.pictures import decode

DOCUMENTED = {200, 400, 413, 415, 422}
GOOD = {"accept": {200, 413, 415}, "reject": {400, 413, 415, 422}}

# All that it lacks is the second byte of the mark for its end: every bit of its picture is there.
WHOLE = "invalid/pillow/Tests/images/truncated_jpeg.jpg"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("jobs")
    with serving(data_dir=str(folder), limit_megapixels=1.5, **QUICK) as server:
        yield server


def resident_mib() -> float:
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


def test_every_odd_file_gets_an_answer_of_its_class(shared: Path, running: Running) -> None:
    """And the service answers /healthz meanwhile, keeps its memory, and works as before."""
    corpora = shared / "corpora"
    with (corpora / "index.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    before, healthy, over = resident_mib(), [0], threading.Event()

    def look_at_health() -> None:
        with httpx.Client(base_url=str(running.client.base_url), trust_env=False, timeout=10) as client:
            while not over.wait(0.1):
                healthy[0] += client.get("/healthz").status_code == 200

    def post(row: dict[str, str]) -> str | None:
        path = corpora / row["path"]
        answer = running.client.post("/v1/upscale?scale=1", content=path.read_bytes())
        expected = "accept" if row["path"] == WHOLE else row["expect"]
        if answer.status_code not in GOOD.get(expected, DOCUMENTED):
            return f"{row['path']} ({row['expect']}): {answer.status_code} {answer.text[:200]}"
        if answer.status_code == 200:
            decode(answer.content)
        else:
            assert answer.headers["content-type"] == "application/problem+json"
            assert str(corpora) not in answer.text
        return None

    watcher = threading.Thread(target=look_at_health)
    watcher.start()
    with ThreadPoolExecutor(4) as pool:
        surprises = [surprise for surprise in pool.map(post, rows) if surprise]
    over.set()
    watcher.join()
    assert len(rows) > 300
    assert not surprises
    assert healthy[0] > 3
    assert resident_mib() < before + 400


def test_the_openapi_document_describes_everything(running: Running) -> None:
    document = running.client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        *("/v1/upscale", "/v1/models", "/v1/limits", "/healthz", "/readyz", "/metrics"),
        *("/v1/jobs", "/v1/jobs/{id}", "/v1/jobs/{id}/result", "/v1/jobs/{id}/events"),
    }
    assert "HTTPValidationError" not in json.dumps(document)
    upscale = document["paths"]["/v1/upscale"]["post"]
    assert set(upscale["responses"]) == {
        *("200", "400", "401", "403", "408", "413", "415", "422", "429", "431", "503", "504"),
    }
    assert set(upscale["requestBody"]["content"]) == {"multipart/form-data", "application/octet-stream"}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                assert response["description"], (path, method, status)
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], (path, method, status)
                if status in ("429", "503"):
                    assert "Retry-After" in response["headers"], (path, method, status)


def test_the_documentation_is_a_page_of_our_own(running: Running) -> None:
    page = running.client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "<script" not in page.text
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page.text)) == {"/docs/style.css", "/openapi.json"}
    assert running.client.get("/docs/style.css").headers["content-type"].startswith("text/css")
    for path in running.client.get("/openapi.json").json()["paths"]:
        assert path in page.text


@pytest.mark.slow
def test_schemathesis_finds_nothing(running: Running, tmp_path: Path) -> None:
    """All its checks but one (see its settings), in all its phases, against the running service."""
    here = Path(__file__).parent
    url = f"http://127.0.0.1:{running.port}/openapi.json"
    arguments = ["--max-examples", "30", "--no-color", "--seed", "1", "--request-timeout", "20"]
    done = subprocess.run(
        [
            Path(sys.executable).with_name("st"),
            "--config-file",
            here / "schemathesis.toml",
            "run",
            url,
            *arguments,
        ],
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
            "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]),
            "NO_PROXY": "127.0.0.1",
        },
        cwd=tmp_path,  # it leaves notes there
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    skipped = re.findall(r"Selected: (\d+)/(\d+)", done.stdout)
    assert skipped == [("11", "11")]
