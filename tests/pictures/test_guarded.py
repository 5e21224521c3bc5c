"""Decoding in a process with limits: what a worker answers, what kills it, and what is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageCms
from support import hostile
from support.hostile import photo, saved

from srgan import pictures
from srgan.commands import cli
from srgan.errors import (
    GuardError,
    PictureError,
    PictureTooLargeError,
    SrganError,
    UnsupportedPictureError,
)
from srgan.pictures import Picture, guarded
from srgan.pictures.guarded import GuardedDecoder, Limits, messages, process, shared

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# A worker whose decoder does what the bytes say, so that it can be made to fail in every way.
OBEDIENT = f"""
import ctypes, os, sys, time
{process.START.removesuffix("serve()")}
from srgan import errors, pictures
honest = pictures.decode
def obey(source, **limits):
    order = source[:20].rstrip(b"\\0") if isinstance(source, bytes) else b""
    if order == b"abort": os.abort()
    if order == b"fault": ctypes.string_at(0)
    if order == b"exit": os._exit(3)
    if order == b"sleep": time.sleep(600)
    if order == b"spin":
        while True: pass
    if order == b"grow": return [bytearray(1 << 20) for _ in range(1 << 20)]
    if order == b"keep": source = kept.append(bytearray(300 << 20)) or source[20:]
    if order == b"raise": raise KeyError("not ours")
    if order == b"print":
        print("noise", flush=True), os.write(1, b"noise"), os.write(2, b"noise")
        source = source[20:]
    if order == b"lie": os.write(answers, b"\\0\\0\\0\\0\\0\\0\\0\\x02[]"); time.sleep(600)
    if order == b"threaten": os.write(answers, b"\\xff" * 8); time.sleep(600)
    if order == b"environment": raise errors.PictureError(f"the picture: {{sorted(os.environ)}}")
    return honest(source, **limits)
kept = []
answers = os.dup(1)
pictures.decode = obey
serve()
"""


def order(word: str) -> bytes:
    return word.encode().ljust(20, b"\0")


@pytest.fixture
def obedient(monkeypatch: pytest.MonkeyPatch) -> Iterator[GuardedDecoder]:
    monkeypatch.setattr(process, "START", OBEDIENT)
    with GuardedDecoder(always=True, max_workers=2) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def decoder() -> Iterator[GuardedDecoder]:
    with GuardedDecoder(always=True, max_workers=2) as decoder:
        yield decoder


def same(a: Picture, b: Picture) -> bool:
    return all(
        np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
        for x, y in ((getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
    )


def gone(pid: int) -> bool:
    """Whether a process ends within ten seconds; a zombie has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 10)[0])
    finally:
        os.close(descriptor)


# What is answered


def good_files() -> dict[str, bytes]:
    clear = photo()
    clear.putalpha(Image.fromarray(np.arange(48 * 64, dtype=np.uint32).astype(np.uint8).reshape(48, 64)))
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files = {format: saved(photo(), format) for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "AVIF")}
    return files | {
        "GIF": saved(photo().quantize(16), "GIF"),
        "grey": saved(photo().convert("L"), "PNG"),
        "transparent": saved(clear, "PNG"),
        "with everything": saved(photo(), "JPEG", icc_profile=icc, exif=b"Exif\0\0" + hostile.exif_looping()),
        "with a warning": saved(photo(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    }


@pytest.mark.parametrize("name", good_files())
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_worker_gives_what_the_decoder_gives(name: str, decoder: GuardedDecoder, tmp_path: Path) -> None:
    content = good_files()[name]
    path = tmp_path / os.fsdecode(b"caf\xe9 \xff\n.png")
    path.write_bytes(content)
    expected = pictures.decode(content)
    for source in (content, path):
        assert same(decoder.decode(source), expected)
        assert same(guarded.decode(source), expected)
    assert decoder.crashes == 0


def test_errors_come_with_their_class_and_the_name_that_was_given(
    decoder: GuardedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep.tif").write_bytes(saved(Image.new("I", (8, 8)), "TIFF"))
    Path("half.tif").write_bytes(saved(photo(), "TIFF")[:-200])
    Path("empty.png").write_bytes(b"")
    Path("folder.png").mkdir()
    os.mkfifo("pipe.png")
    for path, error, start in [
        ("deep.tif", UnsupportedPictureError, "deep.tif: "),
        ("half.tif", PictureError, "half.tif: is damaged"),
        ("empty.png", PictureError, "empty.png: is empty"),
        ("folder.png", PictureError, "folder.png: is a folder"),
        ("pipe.png", PictureError, "pipe.png: is not a regular file"),
        ("missing.png", PictureError, "missing.png: cannot be read"),
        ("nul\0.png", PictureError, "nul\0.png: cannot be read"),
    ]:
        for decode in (decoder.decode, guarded.decode):
            with pytest.raises(error) as caught:
                decode(Path(path))
            assert type(caught.value) is error
            assert str(caught.value).startswith(start)
            assert "\n" not in str(caught.value)
    with pytest.raises(PictureError, match=r"^the picture: is not a picture"):
        decoder.decode(b"junk")


def test_ordinary_photographs_need_no_worker() -> None:
    with GuardedDecoder() as decoder:
        for format in ("JPEG", "PNG", "WEBP"):
            decoder.decode(saved(photo(), format))
        assert decoder.worker_pids == []
        decoder.decode(saved(photo(), "TIFF"))
        assert len(decoder.worker_pids) == 1


def alike(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    return type(a) is type(b) and a == b


packed_arrays = st.sampled_from(["u1", "<u2", "<f4", "?"]).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=1, min_side=0, max_dims=3, max_side=5))
)
packed_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | packed_arrays,
    lambda children: st.lists(children, max_size=4).map(tuple),
    max_leaves=8,
)


@given(packed_values)
def test_what_is_packed_is_unpacked(value: object) -> None:
    blobs: list[Any] = []
    tree = messages.pack(value, blobs)
    with tempfile.TemporaryFile(buffering=0) as file:
        messages.send(file, {"tree": tree}, blobs)
        file.seek(0)
        answer = messages.receive_description(file)
        assert alike(messages.unpack(answer["tree"], file, messages.Budget(10**6)), value)
        assert file.read() == b""


@pytest.mark.parametrize(
    "tree",
    [
        {"array": "O", "shape": [1]},
        {"array": "V8", "shape": [1]},
        {"array": "u1", "shape": [-1, -1]},
        {"array": "u1", "shape": [2**40]},
        {"array": "u1", "shape": [2**40, 0, 2**40]},
        {"array": "no such type", "shape": [1]},
        {"array": "u1"},
        {"bytes": 2000},
        {"bytes": -1},
        {"bytes": "many"},
        {"picture": {"no such field": 1}},
        {"something": "else"},
    ],
)
def test_a_senseless_answer_is_an_error_and_no_work(tree: dict[str, object]) -> None:
    with tempfile.TemporaryFile(buffering=0) as file, pytest.raises((ValueError, TypeError, KeyError)):
        messages.unpack(tree, file, messages.Budget(1000))


# What kills a worker


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("abort", "crashes its decoder"),
        ("fault", "crashes its decoder"),
        ("exit", "exit code 3"),
        ("raise", "exit code 1"),
        ("lie", "senseless answer"),
        ("threaten", "senseless answer"),
    ],
)
def test_a_crash_costs_one_file(word: str, reason: str, obedient: GuardedDecoder, tmp_path: Path) -> None:
    good = saved(photo(), "PNG")
    assert obedient.decode(good).width == 64
    (before,) = obedient.worker_pids
    with pytest.raises(PictureError, match=reason) as caught:
        obedient.decode(order(word))
    assert str(caught.value).startswith("the picture: ")
    assert obedient.crashes == 1
    assert gone(before)
    assert obedient.decode(good).width == 64
    assert obedient.worker_pids != [before]
    assert obedient.crashes == 1


def test_processor_time_is_limited(obedient: GuardedDecoder) -> None:
    limits = Limits(cpu_s=1, wall_s=60)
    with pytest.raises(PictureError, match="more than 1 s of processor time"):
        obedient.decode(order("spin"), limits)
    assert obedient.decode(saved(photo(), "PNG")).width == 64


@pytest.mark.slow
def test_processor_time_is_counted_for_each_file_anew() -> None:
    limits = Limits(cpu_s=1)
    content = saved(photo(800, 800), "PNG")
    with GuardedDecoder(limits, always=True, max_workers=1) as decoder:
        decoder.decode(content)
        (pid,) = decoder.worker_pids

        def spent_s() -> float:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        while spent_s() < 2.2:
            decoder.decode(content)
        assert decoder.worker_pids == [pid]


@linux_only
def test_each_picture_has_its_own_limit_of_memory() -> None:
    """That of the file before it may be smaller than the picture alone."""
    small = Picture(np.zeros((8, 8), np.uint8))
    large = Picture(shared.empty((6000, 7000, 3), np.dtype(np.uint8)))
    large.pixels.fill(0)
    with GuardedDecoder(Limits(memory_bytes=96 << 20), always=True, max_workers=1) as decoder:
        decoder.decode(pictures.encode(small, "png"))
        (pid,) = decoder.worker_pids
        assert pictures.decode(decoder.encode(large, "jpg"), max_megapixels=50).pixels.shape == (6000, 7000, 3)
        assert decoder.worker_pids == [pid]


def test_the_deadline_ends_what_does_nothing(obedient: GuardedDecoder) -> None:
    with pytest.raises(PictureError, match=r"longer than 0\.3 s"):
        obedient.decode(order("sleep"), Limits(wall_s=0.3))
    assert obedient.decode(saved(photo(), "PNG")).width == 64


@linux_only
def test_memory_is_limited_and_the_worker_replaced(obedient: GuardedDecoder) -> None:
    good = saved(photo(), "PNG")
    obedient.decode(good)
    (before,) = obedient.worker_pids
    with pytest.raises(PictureError, match="not enough memory"):
        obedient.decode(order("grow"), Limits(memory_bytes=200 << 20))
    assert gone(before)
    assert obedient.crashes == 0
    assert obedient.decode(good).width == 64


@linux_only
def test_memory_that_a_real_decoder_asks_for_is_limited() -> None:
    flat = saved(Image.new("RGB", (9000, 9000)), "WEBP", lossless=True)  # a few hundred bytes for 324 MB
    limits = Limits(max_megapixels=100, memory_bytes=400 << 20)
    with GuardedDecoder(limits) as decoder:
        with pytest.raises(PictureError, match=r"not enough memory|could not create"):
            decoder.decode(flat)
        assert decoder.decode(saved(photo(), "TIFF")).width == 64


@linux_only
def test_a_worker_that_keeps_memory_is_replaced(obedient: GuardedDecoder) -> None:
    good = saved(photo(), "PNG")
    obedient.decode(order("keep") + good)
    (before,) = obedient.worker_pids
    obedient.decode(good)  # here it is noticed
    assert obedient.worker_pids == []
    assert gone(before)
    assert obedient.crashes == 0


def test_sizes_are_refused_before_and_behind_the_decoder() -> None:
    limits = Limits(max_megapixels=0.01, max_side_px=150)
    with GuardedDecoder(limits, always=True) as decoder:
        for format in ("PNG", "TIFF"):
            with pytest.raises(PictureTooLargeError, match="megapixels"):
                decoder.decode(saved(Image.new("L", (120, 120)), format))
            with pytest.raises(PictureTooLargeError, match="150 pixels a side"):
                decoder.decode(saved(Image.new("L", (151, 2)), format))
            assert decoder.decode(saved(Image.new("L", (150, 2)), format)).width == 150
        assert decoder.crashes == 0


def test_frames_are_refused_where_one_is_wanted() -> None:
    content = saved(photo(), "GIF", save_all=True, append_images=[photo().rotate(90)])
    with GuardedDecoder() as decoder, pytest.raises(PictureTooLargeError, match=r"2 frames .* limit of 1;"):
        decoder.decode(content)


def test_too_many_scans_are_refused_and_many_are_not() -> None:
    content = hostile.jpeg_of_scans(30)
    with GuardedDecoder(Limits(max_scans=20)) as decoder:
        with pytest.raises(PictureTooLargeError, match="20 scans"):
            decoder.decode(content)
        assert decoder.decode(content, Limits(max_scans=30)).width == 64


def test_time_and_memory_of_own_pictures_grow_with_the_limit() -> None:
    small, large = Limits.of_own_pictures(16), Limits.of_own_pictures(400)
    assert (small.cpu_s, small.memory_bytes) == (Limits.cpu_s, Limits.memory_bytes)
    assert large.cpu_s > 60
    assert large.memory_bytes > 400e6 * 16
    with pytest.raises(PictureTooLargeError, match=r"limit of 0\.001 megapixels"):
        guarded.decode(saved(photo(), "TIFF"), max_megapixels=0.001)


# What is left of it


@linux_only
def test_nothing_is_left_of_workers_alive_or_dead(obedient: GuardedDecoder) -> None:
    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    before, pids = held(), set()
    for word in ["abort", "lie", "exit", "raise", ""] * 3:
        content = order(word) if word else saved(photo(), "PNG")
        with contextlib.suppress(PictureError):
            obedient.decode(content)
        pids.update(obedient.worker_pids)
    obedient.close()
    assert held() == before
    assert all(gone(pid) for pid in pids)
    with pytest.raises(GuardError, match="closed"):
        obedient.decode(saved(photo(), "PNG"))
    obedient.close()


@linux_only
def test_a_decoder_that_is_dropped_takes_its_workers_along() -> None:
    decoder = GuardedDecoder(always=True)
    decoder.decode(saved(photo(), "PNG"))
    (pid,) = decoder.worker_pids
    del decoder
    assert gone(pid)


def test_workers_are_used_again_and_are_as_many_as_asked_for(obedient: GuardedDecoder) -> None:
    good = saved(photo(), "PNG")
    obedient.decode(good)
    first = obedient.worker_pids
    for _ in range(5):
        obedient.decode(good)
    assert obedient.worker_pids == first
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(obedient.decode, [good] * 30))
    assert len(obedient.worker_pids) <= 2


def test_threads_get_their_own_pictures_among_crashes(obedient: GuardedDecoder) -> None:
    def flat(level: int) -> bytes:
        return saved(Image.new("L", (level + 1, 3), level), "PNG")

    def level_of(number: int) -> int | None:
        try:
            picture = obedient.decode(order("abort") if number % 10 == 3 else flat(number))
        except PictureError:
            return None
        assert picture.width == number + 1
        assert picture.pixels.min() == picture.pixels.max()
        return int(picture.pixels[0, 0])

    with ThreadPoolExecutor(8) as threads:
        levels = list(threads.map(level_of, range(80)))
    assert levels == [None if number % 10 == 3 else number for number in range(80)]
    assert obedient.crashes == 8


def test_a_worker_that_was_killed_while_idle_costs_no_file(obedient: GuardedDecoder) -> None:
    good = saved(photo(), "PNG")
    obedient.decode(good)
    (pid,) = obedient.worker_pids
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert obedient.decode(good).width == 64
    assert obedient.crashes == 0


@linux_only
def test_an_interrupted_call_leaves_no_half_read_worker(
    obedient: GuardedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = saved(photo(), "PNG")
    obedient.decode(good)
    (before,) = obedient.worker_pids

    def interrupted(*_: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(messages, "unpack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            obedient.decode(good)
    assert gone(before)
    assert obedient.decode(good).width == 64


def test_what_libraries_print_reaches_nobody(obedient: GuardedDecoder, capfd: pytest.CaptureFixture[str]) -> None:
    assert obedient.decode(order("print") + saved(photo(), "PNG")).width == 64
    assert capfd.readouterr() == ("", "")


def test_a_worker_sees_no_secrets(obedient: GuardedDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRGAN_API_KEYS", "secret")
    monkeypatch.setenv("LD_PRELOAD_OF_MINE", "x")
    with pytest.raises(PictureError, match="OPENBLAS_NUM_THREADS") as caught:
        obedient.decode(order("environment"))
    assert "SRGAN" not in str(caught.value)
    assert "PRELOAD" not in str(caught.value)


def test_nothing_in_the_current_folder_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("numpy", "json", "srgan", "PIL"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    with GuardedDecoder(always=True) as decoder:
        assert decoder.decode(saved(photo(), "PNG")).width == 64


def test_a_worker_that_does_not_start_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for code, executable in [("raise SystemExit", sys.executable), (process.START, "/nonexistent/python")]:
        monkeypatch.setattr(process, "START", code)
        monkeypatch.setattr(sys, "executable", executable)
        with GuardedDecoder(always=True) as decoder, pytest.raises(GuardError, match="start"):
            decoder.decode(saved(photo(), "PNG"))
    assert capfd.readouterr().err == ""


SCRIPT_START = """
import io, os, sys
from PIL import Image
from srgan.pictures import guarded
def flat(width):
    buffer = io.BytesIO()
    Image.new("L", (width, 3)).save(buffer, "TIFF")
    return buffer.getvalue()
decoder = guarded.GuardedDecoder(always=True)
assert decoder.decode(flat(5)).width == 5
(pid,) = decoder.worker_pids
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT_START + script], capture_output=True, text=True, check=False
    )


@linux_only
@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "sys.exit(0)", "raise SystemExit"])
def test_workers_end_with_their_parent_however_it_ends(end: str) -> None:
    done = run(f"print(pid, flush=True)\n{end}")
    assert gone(int(done.stdout))
    assert done.stderr == ""


@linux_only
def test_a_forked_process_has_workers_of_its_own() -> None:
    done = run(
        """
child = os.fork()
if not child:
    pictures = [decoder.decode(flat(width)).width for width in range(10, 200)]
    others = decoder.worker_pids
    decoder.close()
    os._exit(pictures != list(range(10, 200)) or pid in others)
assert [decoder.decode(flat(width)).width for width in range(200, 400)] == list(range(200, 400))
assert os.waitpid(child, 0)[1] == 0
assert decoder.worker_pids == [pid]
decoder.close()
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


@linux_only
def test_a_worker_can_neither_write_files_nor_dump_its_memory() -> None:
    with GuardedDecoder(always=True) as decoder:
        decoder.decode(saved(photo(), "PNG"))
        (pid,) = decoder.worker_pids
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"
    for name in ("Max file size", "Max core file size"):
        (line,) = (line for line in limits.splitlines() if line.startswith(name))
        assert line.removeprefix(name).split()[0] == "0"


# Hostile files


BOUNDED = """
import json, resource, sys
from support import hostile
from srgan.pictures import guarded
from srgan.errors import SrganError
files = hostile.hostile() | hostile.good_in_spite() | hostile.halves("WEBP") | hostile.halves("AVIF")
with open("/proc/self/statm") as file:
    start_bytes = int(file.read().split()[0]) * 4096
strangers = guarded.GuardedDecoder(always=True)
outcomes = {}
resource.setrlimit(resource.RLIMIT_AS, (start_bytes + (600 << 20), resource.RLIM_INFINITY))
for name, content in files.items():
    for kind, decode in [("own", guarded.decode), ("strangers", strangers.decode)]:
        try:
            picture = decode(content)
            outcome = [picture.width, picture.height]
        except SrganError as error:
            outcome = str(error)
        outcomes[f"{kind}: {name}"] = outcome
outcomes["crashes"] = [strangers.crashes, guarded.decoder_of_own_pictures().crashes]
print(json.dumps(outcomes))
"""


@linux_only
@pytest.mark.timeout(120)
def test_hostile_files_cost_little_and_harm_nobody() -> None:
    places = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BOUNDED],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": places},
    )
    assert done.stderr == ""
    outcomes = json.loads(done.stdout)
    assert outcomes.pop("crashes") == [0, 0]
    refusals = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, str)}
    assert [name for name, message in refusals.items() if "\n" in message] == []
    assert [name for name, message in refusals.items() if "takes" in message and "scans" not in message] == []
    for kind in ("own", "strangers"):
        for name in hostile.good_in_spite():
            assert isinstance(outcomes[f"{kind}: {name}"], list), name
        for name in [*hostile.halves("WEBP"), *hostile.halves("AVIF")]:
            assert isinstance(outcomes[f"{kind}: {name}"], str), name
        assert "100 scans" in outcomes[f"{kind}: JPEG of a thousand scans"]
        for name in outcomes:
            if "claims" in name and "4000x4000" not in name:
                assert isinstance(outcomes[name], str), name
    assert "too short" in outcomes["own: JPEG that claims to be 13000x13000"]
    assert "65535x65535" in outcomes["own: GIF of ten thousand frames of 65535x65535"]


def test_a_name_promises_nothing(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    for format, name in [("PNG", "png"), ("TIFF", "tiff"), ("GIF", "gif"), ("WEBP", "webp")]:
        path.write_bytes(saved(photo(), format))
        assert guarded.decode(path).format == name
    path.write_bytes(hostile.PNG_SIGNATURE + saved(photo(), "JPEG"))
    with pytest.raises(SrganError):
        guarded.decode(path)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_the_command_line_refuses_from_the_header(
    format: str,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / f"a.{format.lower()}"
    path.write_bytes(saved(photo(), format))

    def status(limit: str) -> object:
        command = ["srgan", "upscale", str(path), "-n", str(tiny_model), "--max-megapixels", limit]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0

    assert status("0.003") == 1
    assert "64x48 pixels are more than the limit of 0.003 megapixels" in capsys.readouterr().err
    assert status("0") == 2
    assert status("nan") == 2
    assert not (tmp_path / f"a_x4.{format.lower()}").exists()
    assert status("0.0031") == 0
    assert (tmp_path / f"a_x4.{format.lower()}").exists()
