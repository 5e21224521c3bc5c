"""A service without keys is for this machine's own pages, whatever name or page a browser lends it to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from srgan_service.http.keys import Keys
from srgan_service.http.origins import Origins
from srgan_service.settings import Settings
from support.serving import QUICK, Running, answer_on, ended, left, png, problem, serving, settings_of

ALICE = "alice-alice-alice-alice-1"
EVIL = {"Origin": "https://evil.example"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(data_dir=str(tmp_path_factory.mktemp("jobs")), allowed_hosts="photos.lan", **QUICK) as server:
        yield server


def refused(host: str, origin: str | None = None, path: str = "/v1/jobs", **settings: Any) -> bool:
    made = settings_of(**settings)
    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin is not None else [])
    return Origins(made, Keys(made)).refusal({"path": path, "headers": headers}) is not None


OURS = ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000", "app.localhost", "localhost."]
FOREIGN = [
    *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost"),
    *("0.0.0.0:8000", "192.0.2.1", "[2001:db8::1]", "", "[::1", "127.0.0.1@evil.example", "localhost:", "a:b:c"),
    *("evil.example/.localhost", "evil.example?.localhost", "[::ffff:127.0.0.1]", "[::1].evil.example", "127.1"),
    *("2130706433", "0x7f000001", "evil.example #.localhost", "localhost:x"),
]


@pytest.mark.parametrize("host", OURS)
def test_names_of_this_machine(host: str) -> None:
    assert not refused(host)
    assert not refused(host, f"http://{host}")


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_refused_unless_allowed_or_where_a_key_is_needed(host: str) -> None:
    assert refused(host)
    assert refused(host, f"http://{host}")  # a page that has moved its name here
    assert not refused(host, keys=f"alice:{ALICE}")
    assert not refused(host, insecure=True)
    assert refused(host, insecure=True, allowed_hosts="photos.lan")


PAGES = ["https://evil.example", "null", "http://localhost:3000", "http://[", "https://photos.lan.evil.example"]


@pytest.mark.parametrize("origin", [*PAGES, "file://", "", "http://192.0.2.1:8000"])
def test_pages_from_elsewhere_are_refused(origin: str) -> None:
    for host in ("127.0.0.1:8000", "photos.lan"):
        assert refused(host, origin, allowed_hosts="photos.lan")
    assert refused("192.0.2.7:8000", origin, insecure=True)
    assert not refused("127.0.0.1:8000", origin, keys=f"alice:{ALICE}")


def test_pages_of_ours_are_not() -> None:
    assert not refused("127.0.0.1:8000", "http://localhost:8000")
    assert not refused("photos.lan", "https://photos.lan", allowed_hosts="other.lan, Photos.LAN")
    assert not refused("127.0.0.1:8000", "https://photos.lan", allowed_hosts="photos.lan")  # a proxy's own Host
    assert not refused("192.0.2.7:8000", "http://192.0.2.7:8000", insecure=True)


def test_a_page_from_elsewhere_neither_lists_reads_leaves_nor_removes(running: Running) -> None:
    location = left(running)
    assert ended(running, location)["status"] == "completed"
    for headers in (EVIL, {"Host": f"evil.example:{running.port}"}):
        for method, path in (
            *(
                ("GET", "/v1/jobs"),
                ("GET", location),
                ("GET", f"{location}/result"),
                ("GET", f"{location}/events"),
            ),
            *(("DELETE", location), ("POST", "/v1/jobs"), ("POST", "/v1/upscale"), ("GET", "/")),
        ):
            content = png() if method == "POST" else None
            answer = running.client.request(method, path, headers=headers, content=content)
            problem(answer, 403, "foreign-origin")
    assert len(running.client.get("/v1/jobs").json()["jobs"]) == 1
    for headers in ({"Host": "photos.lan"}, {"Origin": f"http://127.0.0.1:{running.port}"}):
        assert running.client.get(location, headers=headers).status_code == 200
    assert running.client.get("/healthz", headers={"Host": "probe"}).status_code == 200


def test_no_answer_repeats_a_host(running: Running) -> None:
    for path in ("/v1/jobs/", "/docs/", "/static", "/static/", "//evil.example/..", "/v1/models/"):
        with running.connect(
            f"GET {path} HTTP/1.1\r\nHost: photos.lan\r\nConnection: close\r\n\r\n".encode()
        ) as asked:
            status, headers, body = answer_on(asked)
        assert status == 404
        assert "photos.lan" not in f"{headers} {body!r}"


def test_the_refusal_is_documented_where_it_may_come(running: Running) -> None:
    for path, operations in running.app.openapi()["paths"].items():
        for operation in operations.values():
            assert ("403" in operation["responses"]) == (path not in ("/healthz", "/readyz"))
            assert "foreign-origin" in str(operation["responses"]) or path in ("/healthz", "/readyz")


def test_a_proxy_hands_on_the_name_that_was_asked_for() -> None:
    """Or the page's Origin would be another one than its Host."""
    configuration = Path(__file__).parents[2] / "service" / "deploy" / "nginx.conf"
    assert "proxy_set_header Host $http_host;" in configuration.read_text()


# Pages elsewhere that may


ELSEWHERE = "https://photos.example"


def test_a_page_that_is_named_may_use_the_service_and_no_other() -> None:
    with serving(cors_origins=f"{ELSEWHERE}, https://other.example") as server:
        asked = {"Origin": ELSEWHERE, "Access-Control-Request-Method": "POST"}
        preflight = server.client.options(
            "/v1/upscale", headers=asked | {"Access-Control-Request-Headers": "content-type,x-api-key"}
        )
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, ELSEWHERE)
        assert "X-API-Key" in preflight.headers["access-control-allow-headers"]
        answer = server.client.post("/v1/upscale", content=png(), headers={"Origin": ELSEWHERE})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ELSEWHERE)
        assert "X-Warnings" in answer.headers["access-control-expose-headers"]
        assert "Origin" in answer.headers["vary"]
        for strange in ("https://evil.example", "https://photos.example.evil", "http://photos.example", "null"):
            refusal = server.client.post("/v1/upscale", content=png(), headers={"Origin": strange})
            problem(refusal, 403, "foreign-origin")
            assert "access-control-allow-origin" not in refusal.headers


@pytest.mark.parametrize("text", ["*", "photos.example", "https://photos.example/path", "https://*.example"])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        Settings(cors_origins=text)
