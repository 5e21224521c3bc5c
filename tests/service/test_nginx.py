"""Two servers behind nginx, with the configuration of service/deploy/."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.serving import Process, answer_on, events_of, expected, free_port, head, png, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CONFIGURATION = Path(__file__).parents[2] / "service" / "deploy" / "nginx.conf"


@pytest.fixture
def servers(tmp_path: Path, tiny_model: Path) -> Iterator[list[Process]]:
    pair = [Process(tiny_model, tmp_path / "data") for _ in range(2)]
    try:
        for server in pair:
            server.wait()
        yield pair
    finally:
        for server in pair:
            server.close()


@pytest.fixture
def proxy(tmp_path: Path, servers: list[Process]) -> Iterator[httpx.Client]:
    if shutil.which("nginx") is None or shutil.which("openssl") is None:
        pytest.skip("NO NGINX HERE: apt-get install nginx-light openssl, and service/deploy/nginx.conf is tested")
    port = free_port()
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make_certificate(certificate, key)
    written = CONFIGURATION.read_text()
    for name, value in (
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("/etc/nginx/srgan/certificate.pem", str(certificate)),
        ("/etc/nginx/srgan/key.pem", str(key)),
        ("127.0.0.1:8001", f"127.0.0.1:{servers[0].port}"),
        ("127.0.0.1:8002", f"127.0.0.1:{servers[1].port}"),
    ):
        assert name in written
        written = written.replace(name, value)
    folders = "".join(
        f"{kind}_temp_path {tmp_path};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"{user} daemon off; worker_processes 1; pid {tmp_path}/pid; error_log {tmp_path}/errors;\n"
        f"events {{}} http {{ access_log off; {folders}\n{written} }}\n"
    )
    with subprocess.Popen(["nginx", "-c", str(config), "-p", str(tmp_path)]) as running:
        url, trust = f"https://127.0.0.1:{port}", ssl.create_default_context(cafile=certificate)
        with httpx.Client(base_url=url, timeout=60, trust_env=False, verify=trust) as client:
            try:
                until(lambda: answers(client))
                yield client
            finally:
                running.terminate()


def make_certificate(certificate: Path, key: Path) -> None:
    """One for 127.0.0.1 that signs itself."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-out", certificate, "-keyout", key),
        ],
        check=True,
        capture_output=True,
    )


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_the_configuration(proxy: httpx.Client, servers: list[Process], tiny_model: Path) -> None:
    """Pictures, refusals, streams and jobs come through, and one server may die."""
    content = png(40, 30)
    (right,) = expected(tiny_model, [content])
    answer = proxy.post("/v1/upscale", content=content, headers={"X-Request-Id": "of-the-client"})
    assert answer.content == right
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])  # nginx's own, found in its log as in ours
    unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", proxy.base_url.port or 0), timeout=30) as opened,
        unchecked.wrap_socket(opened) as uploading,
    ):
        uploading.sendall(head(content_length=40_000_000, connection="close"))
        status, headers, body = answer_on(uploading)  # though nothing of it was sent
        assert (status, headers["content-type"]) == (413, "application/problem+json"), body
    location = proxy.post("/v1/jobs", content=content).headers["location"]
    assert events_of(proxy, location)[-1]["status"] == "completed"
    assert proxy.get(f"{location}/result", headers={"Range": "bytes=0-9"}).content == right[:10]
    servers[0].kill()
    for _ in range(10):
        assert proxy.post("/v1/upscale", content=content).content == right
        assert proxy.get(f"{location}/result").content == right
