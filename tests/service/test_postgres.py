"""Several servers that share jobs by PostgreSQL: a real one, on the loopback address, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.serving import Process, accepted, expected, free_port, png, results, until

# DBOS waits up to a minute before it asks again a database that was gone.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def programs() -> Path:
    """The folder of PostgreSQL's programs. Skips, loudly, where there is none."""
    paths = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not paths:
        pytest.skip("NO POSTGRESQL HERE: apt-get install postgresql, and the jobs of several machines are tested")
    return paths[-1].parent


class Postgres:
    """A cluster of one database that can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._programs = folder, programs()
        # PostgreSQL refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        self.port = free_port()
        self.url = f"postgresql://srgan@127.0.0.1:{self.port}/postgres"
        self._run("initdb", "-D", str(folder / "data"), "-U", "srgan", "-A", "trust", "-N", "--no-instructions")

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories='' -c fsync=off"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-l", log, "-w", "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "-w", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        with (self._folder / f"{program}.log").open("a+") as log:  # not a pipe: the server would keep it open
            done = subprocess.run(
                [self._programs / program, *arguments],
                user=self._user,
                cwd=self._folder,
                check=False,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            log.seek(0)
            assert done.returncode == 0, log.read()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    # Not below pytest's own folders: every run shuts those to other users again, PostgreSQL's among them.
    with tempfile.TemporaryDirectory(prefix="srgan-postgres-") as folder:
        server = Postgres(Path(folder))
        server.start()
        yield server
        server.stop()


def test_two_servers_share_jobs_and_one_may_die(tmp_path: Path, tiny_model: Path, postgres: Postgres) -> None:
    contents = [png(90, 80, seed) for seed in range(8)]
    first = Process(tiny_model, tmp_path / "pictures", postgres.url)
    second = Process(tiny_model, tmp_path / "pictures", postgres.url)
    try:
        first.wait()
        second.wait()
        ids = accepted(first, contents)
        until(lambda: any(second.client.get(f"/v1/jobs/{id}").json()["status"] == "processing" for id in ids))
        first.kill(signal.SIGKILL)
        assert results(second.client, ids) == expected(tiny_model, contents)
    finally:
        first.close()
        second.close()


def test_a_database_that_goes_and_comes_back_loses_no_job(
    tmp_path: Path, tiny_model: Path, postgres: Postgres
) -> None:
    contents = [png(90, 80, seed) for seed in range(4)]
    server = Process(tiny_model, tmp_path / "pictures", postgres.url)
    try:
        server.wait()
        ids = accepted(server, contents)
        postgres.stop()
        answer = server.client.get("/v1/jobs")
        assert answer.status_code == 503
        assert answer.json()["code"] == "storage-failed"
        assert server.client.get("/healthz").status_code == 200
        assert server.client.post("/v1/upscale", content=contents[0]).status_code == 200
        postgres.start()
        until(lambda: server.client.get("/v1/jobs").status_code == 200, 60)
        assert results(server.client, ids) == expected(tiny_model, contents)
    finally:
        server.close()
