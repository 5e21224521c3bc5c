"""Jobs: accepted once, done once, whatever happens in between."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from srgan_service.jobs.storage import Storage
from srgan_service.work.names import disposition, stem, unique
from support.serving import QUICK, Running, ended, events_of, left, levels, png, problem, serving
from support.threads import at_once

from srgan.errors import UsageError
from srgan.pictures import Picture, decode, encode


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("jobs")
    with serving(data_dir=str(folder), limit_bytes=100_000, tile_lr_px=16, **QUICK) as server:
        yield server


def test_a_picture_is_done_and_fetched(running: Running) -> None:
    location = left(running)
    job = ended(running, location)
    assert (job["status"], job["progress"], job["error"]) == ("completed", 1.0, None)
    assert job["created_at"] <= job["started_at"] <= job["finished_at"] < job["expires_at"]
    assert (job["files"][0]["width"], job["files"][0]["height"]) == (20, 24)
    answer = running.client.get(job["result"]["href"])
    assert answer.headers["content-type"] == "image/png" == job["result"]["media_type"]
    assert answer.headers["content-disposition"] == 'attachment; filename="picture_x4.png"'
    assert len(answer.content) == job["result"]["bytes"] == int(answer.headers["content-length"])
    np.testing.assert_array_equal(decode(answer.content).pixels, levels(6, 5).repeat(4, 0).repeat(4, 1))
    assert answer.content == running.client.post("/v1/upscale", content=png()).content


def test_many_pictures_come_as_an_archive_and_a_bad_one_fails_alone(running: Running) -> None:
    names = ["../../a/one.png", "two\r\n.png", "bad.jpg", "..", "x" * 300 + ".png"]
    files = [
        ("image", (name, png(seed=seed) if name != "bad.jpg" else b"hello")) for seed, name in enumerate(names)
    ]
    job = ended(running, left(running, files=files, data={"scale": "2"}, content=None))
    assert job["status"] == "completed"
    assert job["parameters"] == {"scale": 2.0}
    assert [file["error"] and file["error"]["code"] for file in job["files"]] == [
        None,
        None,
        "unsupported-format",
        None,
        None,
    ]
    answer = running.client.get(job["result"]["href"])
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        inside = archive.namelist()
        assert inside == ["one_x2.png", "two%0D%0A_x2.png", "picture_x2.png", "x" * 200 + "_x2.png"]
        assert decode(archive.read(inside[0])).pixels.shape == (12, 10, 3)


def test_a_job_says_what_its_format_cannot_hold(running: Running) -> None:
    deep = encode(Picture(levels(6, 5).astype(np.uint16)), "png")
    job = ended(running, left(running, content=deep, params={"format": "webp"}))
    assert len(job["files"][0]["warnings"]) == 1
    assert "8 bits per channel" in job["files"][0]["warnings"][0]
    assert ended(running, left(running, content=deep))["files"][0]["warnings"] == []


def test_a_job_of_nothing_but_bad_pictures_fails(running: Running) -> None:
    job = ended(running, left(running, content=png()[:60]))
    assert (job["status"], job["error"]["code"], job["result"]) == ("failed", "damaged-picture", None)
    problem(running.client.get(f"/v1/jobs/{job['id']}/result"), 409, "conflict")


def test_nonsense_is_refused_at_once(running: Running) -> None:
    post = running.client.post
    problem(post("/v1/jobs", content=b"hello"), 415, "unsupported-format")
    problem(post("/v1/jobs", content=b""), 400, "no-picture")
    problem(post("/v1/jobs", files={"image": b"hello"}), 415, "unsupported-format")
    problem(post("/v1/jobs?scale=99", content=png()), 422, "invalid-parameter")
    problem(post("/v1/jobs?model=nonsense", content=png()), 422, "invalid-parameter")
    problem(post("/v1/jobs?scale=2&width=3", content=png()), 422, "invalid-parameter")
    problem(post("/v1/jobs", content=b"\x89PNG\r\n\x1a\n" + bytes(100_000)), 413, "too-many-bytes")
    problem(post("/v1/jobs", files={"image": b"\x89PNG\r\n\x1a\n" + bytes(100_001)}), 413, "too-many-bytes")
    problem(post("/v1/jobs", content=png(), headers={"Idempotency-Key": ""}), 422, "invalid-parameter")
    files = [("image", png())] * 101
    problem(post("/v1/jobs", files=files), 400, "malformed-request")
    for path in ("nothing", "a" * 32, "%00", "..%2f..%2fetc"):
        problem(running.client.get(f"/v1/jobs/{path}"), 404, "not-found")
        problem(running.client.delete(f"/v1/jobs/{path}"), 404, "not-found")
    problem(running.client.get("/v1/jobs?limit=0"), 422, "invalid-parameter")


def test_the_same_key_and_content_is_the_same_job(running: Running) -> None:
    headers = {"Idempotency-Key": "once"}
    first = running.client.post("/v1/jobs", content=png(), headers=headers)
    again = running.client.post("/v1/jobs", content=png(), headers=headers)
    assert first.json()["id"] == again.json()["id"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    problem(running.client.post("/v1/jobs", content=png(seed=1), headers=headers), 409, "conflict")
    problem(running.client.post("/v1/jobs?scale=2", content=png(), headers=headers), 409, "conflict")
    assert running.client.post("/v1/jobs", content=png()).json()["id"] != first.json()["id"]


def test_the_same_key_at_the_same_time_makes_one_job(running: Running) -> None:
    def ask(_: int) -> str:
        answer = running.client.post("/v1/jobs", content=png(), headers={"Idempotency-Key": "together"})
        return str(answer.json()["id"])

    ids = at_once(ask, range(6))
    assert len(set(ids)) == 1
    assert ended(running, f"/v1/jobs/{ids[0]}")["status"] == "completed"


RANGES = {
    "bytes=0-9": (0, 10),
    "bytes=10-": (10, None),
    "bytes=-7": (-7, None),
    "bytes=5-100000": (5, None),
    "bytes=0-0": (0, 1),
}


def test_a_result_can_be_fetched_in_parts(running: Running) -> None:
    href = ended(running, left(running))["result"]["href"]
    whole = running.client.get(href)
    content, etag = whole.content, whole.headers["etag"]
    for asked, (start, stop) in RANGES.items():
        answer = running.client.get(href, headers={"Range": asked})
        assert answer.status_code == 206
        assert answer.content == content[start:stop]
        first, last = answer.headers["content-range"].removeprefix("bytes ").partition("/")[0].split("-")
        assert content[int(first) : int(last) + 1] == answer.content
    for asked in ("bytes=9-2", "bytes=a-b", "lines=1-2", "bytes=-", "bytes=0-1,3-4", "bytes=" + "9" * 99 + "-"):
        answer = running.client.get(href, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (200, content)
    for asked in (f"bytes={len(content)}-", "bytes=-0"):
        answer = running.client.get(href, headers={"Range": asked})
        problem(answer, 416, "range-not-satisfiable")
        assert answer.headers["content-range"] == f"bytes */{len(content)}"
    same = running.client.get(href, headers={"Range": "bytes=0-9", "If-Range": etag})
    assert same.status_code == 206
    other = running.client.get(href, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert other.status_code == 200
    for known in (etag, f"W/{etag}", f'"other", W/"a,b",{etag}', "*", f'"other" , {etag}'):
        assert running.client.get(href, headers={"If-None-Match": known}).status_code == 304
    for unknown in ('"other"', etag[1:-1], f'"{etag[1:-1]} "', 'W/"other", "more"', ""):
        assert running.client.get(href, headers={"If-None-Match": unknown}).content == content


def test_a_job_can_be_watched_to_its_end(running: Running) -> None:
    seen = events_of(running.client, left(running, content=png(90, 90)))
    assert seen[-1]["status"] == "completed"
    assert [event["progress"] for event in seen] == sorted(event["progress"] for event in seen)


def test_who_has_seen_the_last_event_is_told_to_come_no_more(running: Running) -> None:
    """Browsers open an event stream again when it ends, unless the answer is 204."""
    location = left(running)
    ended(running, location)
    whole = running.client.get(f"{location}/events", headers={"Last-Event-ID": "of an event before"})
    (last,) = (line[4:] for line in whole.text.splitlines() if line.startswith("id: "))
    again = running.client.get(f"{location}/events", headers={"Last-Event-ID": last})
    assert (again.status_code, again.content) == (204, b"")


def test_results_are_named_after_their_uploads(running: Running) -> None:
    names = {
        "one.jpg": "one_x4.png",  # which is PNG in truth
        "ONE.PNG": "ONE_x4.png",
        "photo.v2": "photo.v2_x4.png",
        "C:\\pictures\\two.apng": "two_x4.apng",
        "grün ✓.png": "grün ✓_x4.png",
    }
    for name, result in names.items():
        files = {"image": (name, png())}
        plain = re.sub("[^ -~]", "_", result)
        exact = f'filename="{plain}"' + ("" if plain == result else f"; filename*=UTF-8''{quote(result)}")
        answer = running.client.post("/v1/upscale", files=files)
        assert answer.headers["content-disposition"] == f"inline; {exact}"
        job = ended(running, left(running, files=files, content=None))
        answer = running.client.get(job["result"]["href"])
        assert answer.headers["content-disposition"] == f"attachment; {exact}"
    sized = running.client.post("/v1/upscale?long_side=30&format=jpg", files={"image": ("a.jpeg", png())})
    assert sized.headers["content-disposition"] == 'inline; filename="a_30px.jpg"'


def test_results_of_one_name_are_told_apart_in_an_archive(running: Running) -> None:
    files = [("image", (name, png(seed=seed))) for seed, name in enumerate(("a.png", "A.png", "b/a.png", "é.png"))]
    job = ended(running, left(running, files=files, content=None))
    content = running.client.get(job["result"]["href"]).content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["a_x4.png", "A_x4-2.png", "a_x4-3.png", "é_x4.png"]
        for seed, name in enumerate(archive.namelist()):
            expected = levels(6, 5, seed).repeat(4, 0).repeat(4, 1)
            np.testing.assert_array_equal(decode(archive.read(name)).pixels, expected)


# Storage


def test_storage_elsewhere_is_storage_here(tmp_path: Path) -> None:
    import uuid

    for url in (str(tmp_path / "folder"), f"memory://{uuid.uuid4().hex}"):
        storage = Storage(url)
        assert storage.names("jobs") == []
        storage.write("jobs/a/in/0", b"0123456789")
        storage.write("jobs/a/in/0", b"abcdefghij")
        storage.write("jobs/b/in/0", b"x")
        assert storage.read("jobs/a/in/0") == b"abcdefghij"
        assert storage.read("jobs/a/in/0", 2, 5) == b"cde"
        assert storage.names("jobs") == ["a", "b"]
        sizes = {
            storage.archive("jobs/a/result.zip", [("one.png", "jobs/a/in/0"), ("two", "jobs/b/in/0")])
            for _ in "ab"
        }
        assert len(sizes) == 1
        with zipfile.ZipFile(io.BytesIO(storage.read("jobs/a/result.zip"))) as archive:
            assert archive.read("one.png") == b"abcdefghij"
        storage.remove("jobs/a")
        storage.remove("jobs/a")
        assert not storage.exists("jobs/a/in/0")
        with pytest.raises(FileNotFoundError):
            storage.read("jobs/a/in/0")
    with pytest.raises(UsageError):
        Storage("nonsense://bucket")


@pytest.mark.parametrize(
    ("name", "kept"),
    {
        "../../etc/passwd": "passwd",
        "a\\b\\c.png": "c",
        "": "picture",
        "....": "picture",
        "..": "picture",
        "\u202egnp.png": "_gnp",
        "é.png": "é",
        "e\u0301.png": "é",
        "a\0b\r\n.png": "a_b__",
        "con.v2.png": "_con.v2",
        'a"b<c>:|?*.jpeg': "a_b_c_____",
        "\udc80.png": "_",
        "x" * 999: "x" * 200,
        "é" * 999: "é" * 100,
        " .hidden. .png": "hidden",
    }.items(),
)
def test_names_harm_no_disk(name: str, kept: str) -> None:
    assert stem(name) == kept


def test_equal_names_get_numbers() -> None:
    assert list(unique(["a.png", "a-2.png", "A.png", "a.png"])) == ["a.png", "a-2.png", "A-3.png", "a-4.png"]


def test_quotes_and_percents_are_not_taken_for_more() -> None:
    assert disposition("inline", "50%_x4.png") == "inline; filename=\"50__x4.png\"; filename*=UTF-8''50%25_x4.png"


def test_jobs_are_done_in_their_order(running: Running) -> None:
    places = [left(running, content=png(seed=seed)) for seed in range(4)]
    started = [ended(running, place)["started_at"] for place in places]
    assert started == sorted(started)
