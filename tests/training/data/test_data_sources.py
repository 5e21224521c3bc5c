"""Sources, pairs, weights, and a cache that survives kills, company and size."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.caches import cache_of, hr_patches
from support.threads import at_once

from srgan import pictures
from srgan.errors import PictureError, UsageError
from srgan.training.config import DataRecipe
from srgan.training.data import cache as data
from srgan.training.data.cache import PictureCache, build_cache, split
from srgan.training.data.degradation import Bicubic
from srgan.training.data.patches import Patches
from srgan.training.data.sources import (
    ENERGY_BLOCK_PX,
    File,
    Source,
    examine,
    in_order,
    list_files,
    parse_source,
)

CPU = torch.device("cpu")


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def marked(height: int, width: int, number: int = 0) -> np.ndarray:
    """Every pixel says where it stands: (row, column, number)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.full_like(y, number)], axis=2).astype(np.uint8)


def save(pixels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def levels(patches: torch.Tensor) -> torch.Tensor:
    return (patches * 255).round().long()


def places(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Number, top and left of each patch of marked pictures, whatever way it is turned."""
    top, left, number = levels(patches).amin((2, 3)).unbind(1)
    return number, top, left


# What is asked for


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("hr", "lr", "a=2", "c:d", "e"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "folder", "lr", "weight"),
    [
        ("hr", "hr", None, None),
        ("hr=2.5", "hr", None, 2.5),
        ("hr=1e-3", "hr", None, 1e-3),
        ("hr:lr", "hr", "lr", None),
        ("hr:lr=3", "hr", "lr", 3.0),
        ("a=2", "a=2", None, None),  # a folder of that name
        ("a=2=4", "a=2", None, 4.0),
        ("a=2:lr", "a=2", "lr", None),
        ("c:d", "c:d", None, None),
        ("c:d=2", "c:d", None, 2.0),
        ("c:d:lr", "c:d", "lr", None),
        ("hr:c:d", "hr", "c:d", None),
        ("hr/../e/=2", "hr/../e", None, 2.0),
    ],
)
def test_sources_are_read(here: Path, text: str, folder: str, lr: str | None, weight: float | None) -> None:
    assert parse_source(text) == Source(Path(folder), None if lr is None else Path(lr), weight)


@pytest.mark.parametrize("text", ["absent", "hr:absent", "absent=2", "", "=", "=2", ":", "hr:lr:e"])
def test_what_is_no_folder_is_refused(here: Path, text: str) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        parse_source(text)


@pytest.mark.parametrize("number", ["", "x", "0", "-1", "nan", "inf"])
def test_weights_must_be_numbers_above_0(here: Path, number: str) -> None:
    with pytest.raises(UsageError, match="the weight must be a number above 0"):
        parse_source(f"hr={number}")


# Weighted sources


def numbered(tmp_path: Path, *sizes: tuple[int, int]) -> list[Path]:
    """A folder for each size, its picture numbered."""
    return [
        save(marked(height, width, number), tmp_path / str(number) / "p.png").parent
        for number, (height, width) in enumerate(sizes)
    ]


def shares(cache: PictureCache, count: int = 6000, patch_px: int = 16) -> np.ndarray:
    """How often each number comes."""
    numbers = levels(hr_patches(Patches(cache, patch_px, CPU, seeded()), count))[:, 2, 0, 0]
    return np.bincount(numbers.numpy(), minlength=3) / count


def test_weights_are_shares_of_the_patches(tmp_path: Path) -> None:
    one, two, three = numbered(tmp_path, (40, 40), (17, 17), (15, 15))
    weighted = build_cache([Source(one, weight=1), Source(two, weight=3), Source(three)], tmp_path / "cache")
    # The third has weight 1 beside others, but nothing as large as a patch. Six deviations of 0.0056.
    np.testing.assert_allclose(shares(weighted), [0.25, 0.75, 0], atol=0.034)
    even = build_cache([one, two, three], tmp_path / "cache")
    np.testing.assert_allclose(shares(even), [625 / 629, 4 / 629, 0], atol=0.01)


def test_weights_hold_within_a_subset(tmp_path: Path) -> None:
    one, two, _ = numbered(tmp_path, (40, 40), (17, 17), (15, 15))
    for seed in range(8):
        save(marked(20, 20, 0), one / f"{seed}.png")
        save(marked(20, 20, 1), two / f"{seed}.png")
    cache = build_cache([Source(one, weight=1), Source(two, weight=3)], tmp_path / "cache")
    training, validation = split(cache, DataRecipe(held_out=3))
    assert len(training) + len(validation) == 18
    np.testing.assert_allclose(shares(training), [0.25, 0.75, 0], atol=0.034)


def test_weights_make_another_training_set_from_the_same_pixels(tmp_path: Path) -> None:
    one, two = numbered(tmp_path, (20, 20), (18, 18))
    plain = build_cache([one, two], tmp_path / "cache")
    weighted = build_cache([Source(one, weight=2), Source(two)], tmp_path / "cache")
    assert plain.sha256 != weighted.sha256  # a run must not be resumed with others
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 1
    assert torch.equal(plain.pixels, weighted.pixels)


def test_no_source_left_to_draw_from(tmp_path: Path) -> None:
    one, two = numbered(tmp_path, (40, 40), (15, 15))
    cache = build_cache([Source(one, weight=1), Source(two, weight=1)], tmp_path / "cache")
    with pytest.raises(UsageError, match="at least 16 px"):
        Patches(cache.subset([1]), 16, CPU, seeded())


# Pairs


@pytest.fixture
def pairs(tmp_path: Path) -> Source:
    """Three good pairs, by the same name, as NAMEx4 and below a folder; and three bad ones."""
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    for name, lr_name, (height, width) in (
        ("a.png", "a.png", (40, 56)),
        ("b.jpg", "bx4.png", (32, 48)),
        ("below/c.png", "below/cx4.webp", (36, 32)),
    ):
        save(noise(height, width), hr / name)
        save(noise(height // 4, width // 4, 1), lr / lr_name)
    save(noise(40, 40), hr / "lonely.png")
    save(noise(40, 40), hr / "wrong.png")
    save(noise(10, 11), lr / "wrong.png")
    save(noise(41, 40), hr / "odd.png")
    save(noise(10, 10), lr / "odd.png")
    save(noise(10, 10), lr / "without_hr.png")
    return Source(hr, lr)


def test_pairs_are_found_checked_and_listed(
    pairs: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        cache = build_cache([pairs], tmp_path / "cache")
    assert cache.names == ["a.png", "b.jpg", "c.png"]
    reasons = dict(cache.skipped)
    assert reasons.keys() == {"lonely.png", "wrong.png", "odd.png"}
    assert "lonely.png does not exist" in reasons["lonely.png"]
    assert "40x40 px, not 4 times its LR picture wrong.png of 11x10 px" in reasons["wrong.png"]
    assert "40x41 px" in reasons["odd.png"]
    assert "3 of 6 files" in caplog.text
    for index, name in enumerate(("a.png", "bx4.png")):
        lr = cache.lr_picture(index)
        assert lr is not None
        assert pairs.lr_folder is not None
        assert np.array_equal(lr.numpy(), np.asarray(Image.open(pairs.lr_folder / name)))
    assert np.array_equal(cache.picture(0).numpy(), np.asarray(Image.open(pairs.folder / "a.png")))


def test_an_lr_folder_inside_the_hr_folder(tmp_path: Path) -> None:
    save(noise(32, 32), tmp_path / "hr" / "a.png")
    save(noise(8, 8), tmp_path / "hr" / "small" / "a.png")
    files = list_files([Source(tmp_path / "hr", tmp_path / "hr" / "small")])
    assert files == [File(tmp_path / "hr" / "a.png", 0, tmp_path / "hr" / "small" / "a.png")]


def test_a_changed_lr_file_is_packed_anew(pairs: Source, tmp_path: Path) -> None:
    assert pairs.lr_folder is not None
    before = build_cache([pairs], tmp_path / "cache")
    path = save(noise(10, 14, 7), pairs.lr_folder / "a.png")
    os.utime(path, ns=(0, 0))
    after = build_cache([pairs], tmp_path / "cache")
    assert before.sha256 != after.sha256
    lr = after.lr_picture(0)
    assert lr is not None
    assert np.array_equal(lr.numpy(), noise(10, 14, 7))


class Refusing(Bicubic):
    """A degradation that must not be needed."""

    def __call__(self, hr_with_margin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("degraded what has an LR of its own")


@pytest.fixture
def paired(tmp_path: Path) -> Source:
    """A pair whose pixels say where they stand, LR in LR pixels; its third channel is 200."""
    save(marked(60, 72, 200), tmp_path / "hr" / "a.png")
    save(marked(15, 18, 200), tmp_path / "lr" / "a.png")
    return Source(tmp_path / "hr", tmp_path / "lr")


def test_paired_patches_are_of_the_same_place_and_attitude(paired: Source, tmp_path: Path) -> None:
    patches = Patches(build_cache([paired], tmp_path / "cache"), 32 + 16, CPU, seeded())
    lr, hr = patches.pairs(500, Refusing())
    assert lr.shape == (500, 3, 8, 8)
    assert hr.shape == (500, 3, 32, 32)
    blocks = levels(hr).view(500, 3, 8, 4, 8, 4)
    assert torch.equal(blocks.amin((3, 5))[:, :2] // 4, levels(lr)[:, :2])
    assert torch.equal(blocks.amax((3, 5))[:, :2] // 4, levels(lr)[:, :2])
    # All 4×7 places on the grid that leave room for the margin, all attitudes, equally often (five deviations).
    corners = levels(lr)[:, :2].amin((2, 3))
    places, counts = np.unique(corners.numpy(), axis=0, return_counts=True)
    assert {(int(y), int(x)) for y, x in places} == {(y, x) for y in range(2, 6) for x in range(2, 9)}
    assert counts.max() < 500 / 28 + 5 * np.sqrt(500 / 28)
    turns = {tuple((levels(lr)[i, :2, 0, 0] - corners[i]).tolist()) for i in range(500)}
    assert turns == {(0, 0), (7, 0), (0, 7), (7, 7)}


def test_paired_and_degraded_pictures_in_one_batch(paired: Source, tmp_path: Path) -> None:
    plain = save(marked(70, 70, 40), tmp_path / "plain" / "b.png").parent
    cache = build_cache([paired, plain], tmp_path / "cache")
    lr, hr = Patches(cache, 32 + 16, CPU, seeded(1)).pairs(64, Bicubic())
    shipped = levels(hr)[:, 2, 0, 0] == 200
    assert 5 < int(shipped.sum()) < 60
    blocks = levels(hr).view(64, 3, 8, 4, 8, 4)
    assert torch.equal((blocks.amin((3, 5)) // 4)[shipped][:, :2], levels(lr)[shipped][:, :2])
    whole = hr_patches(Patches(cache, 32 + 16, CPU, seeded(1)), 64)
    assert torch.equal(lr[~shipped], Bicubic()(whole)[0][~shipped])


def test_positions_of_pairs_weigh_as_those_of_others(tmp_path: Path) -> None:
    """A pair is cut on a grid of 4, and yet is not drawn 16 times less."""
    for name in ("hr", "plain"):
        save(
            marked(115 + (name == "hr"), 115 + (name == "hr"), 200 if name == "hr" else 40),
            tmp_path / name / "a.png",
        )
    save(marked(29, 29, 200), tmp_path / "lr" / "a.png")
    cache = build_cache([Source(tmp_path / "hr", tmp_path / "lr"), tmp_path / "plain"], tmp_path / "cache")
    share = float((levels(hr_patches(Patches(cache, 16, CPU, seeded()), 4000))[:, 2, 0, 0] == 200).float().mean())
    expected = 16 * 26**2 / (16 * 26**2 + 100**2)
    assert abs(share - expected) < 6 * np.sqrt(0.25 / 4000)


# Energy


def test_energy_by_hand(tmp_path: Path) -> None:
    pixels = noise(70, 45)
    grey = pixels[..., 1].astype(int)
    change = np.zeros((70, 45))
    for y in range(70):
        for x in range(45):
            change[y, x] += abs(grey[y, x] - grey[y, x - 1]) if x else 0
            change[y, x] += abs(grey[y, x] - grey[y - 1, x]) if y else 0
    expected = [[change[y : y + 32, x : x + 32].mean() for x in (0, 32)] for y in (0, 32, 64)]
    energy = examine(File(save(pixels, tmp_path / "a.png"), 0)).energy
    np.testing.assert_allclose(energy, expected, rtol=1e-6)


def test_thumbnails_by_hand(tmp_path: Path) -> None:
    pixels = noise(48, 80)
    thumbnail = examine(File(save(pixels, tmp_path / "a.png"), 0)).thumbnail
    expected = pixels[..., 1].reshape(16, 3, 16, 5).mean((1, 3))
    assert np.abs(thumbnail - expected).max() <= 0.5
    for height, width in ((1, 1), (3, 40), (1000, 700)):
        assert examine(File(save(noise(height, width), tmp_path / "b.png"), 0)).thumbnail.shape == (16, 16)


@pytest.fixture
def uneven(tmp_path: Path) -> PictureCache:
    """One picture with detail in one corner only, and a smaller one with a little everywhere."""
    corner = np.full((96, 128, 3), 90, np.uint8)
    corner[:40, :50] = noise(40, 50)
    save(corner, tmp_path / "in" / "a.png")
    save(100 + noise(64, 70) // 32, tmp_path / "in" / "b.png")
    return build_cache([tmp_path / "in"], tmp_path / "cache")


def expected_chances(cache: PictureCache, patch_px: int, share: float) -> list[np.ndarray]:
    """The chance of each position of each picture, position by position."""
    energies = []
    for index in range(len(cache)):
        green = cache.picture(index).numpy()[..., 1].astype(float)
        change = np.abs(np.diff(green, axis=1, prepend=green[:, :1])) + np.abs(
            np.diff(green, axis=0, prepend=green[:1])
        )
        b = ENERGY_BLOCK_PX
        rows, columns = (-(-size // b) for size in green.shape)
        blocks = np.array(
            [[change[b * i : b * i + b, b * j : b * j + b].mean() for j in range(columns)] for i in range(rows)]
        )
        chances = np.zeros((green.shape[0] - patch_px + 1, green.shape[1] - patch_px + 1))
        for y, x in np.ndindex(*chances.shape):
            # The blocks that a patch anywhere in this block of positions may touch.
            i, j = y // b, x // b
            last = (b - 1 + patch_px - 1) // b
            chances[y, x] = blocks[i : i + last + 1, j : j + last + 1].mean()
        energies.append(chances)
    detail = sum(chances.sum() for chances in energies)
    positions = sum(chances.size for chances in energies)
    return [(1 - share) / positions + share * chances / detail for chances in energies]


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_detail_is_drawn_in_proportion(uneven: PictureCache, share: float) -> None:
    patch_px, count = 24, 20_000
    expected = expected_chances(uneven, patch_px, share)
    cache = replace(uneven, pixels=cache_of(marked(96, 128, 0), marked(64, 70, 1)).pixels)  # its energy kept
    patches = Patches(cache, patch_px, CPU, seeded(3), share)
    which, top, left = (column.numpy() for column in places(hr_patches(patches, count)))
    for picture, chances in enumerate(expected):
        drawn = np.zeros(chances.shape)
        np.add.at(drawn, (top[which == picture], left[which == picture]), 1)
        # Summed over blocks of positions that cut across the cells, each within six deviations.
        for y in range(0, chances.shape[0], 13):
            for x in range(0, chances.shape[1], 17):
                p = chances[y : y + 13, x : x + 17].sum()
                seen = drawn[y : y + 13, x : x + 17].sum()
                assert abs(seen - count * p) <= 6 * np.sqrt(count * p) + 1e-9, (picture, y, x)


def test_detail_draws_resume_bit_for_bit(uneven: PictureCache) -> None:
    random = seeded(5)
    patches = Patches(uneven, 24, CPU, random, 0.5)
    hr_patches(patches, 9)
    state = random.get_state()
    ahead = hr_patches(patches, 20)
    resumed = seeded(99)
    resumed.set_state(state)
    assert torch.equal(hr_patches(Patches(uneven, 24, CPU, resumed, 0.5), 20), ahead)


def test_pictures_without_any_detail_are_drawn_evenly(tmp_path: Path) -> None:
    save(np.full((40, 40, 3), 7, np.uint8), tmp_path / "in" / "a.png")
    flat = build_cache([tmp_path / "in"], tmp_path / "cache")
    cache = replace(flat, pixels=cache_of(marked(40, 40)).pixels)  # its energy kept
    _, top, left = places(hr_patches(Patches(cache, 16, CPU, seeded(), 1.0), 2000))
    assert set(top.tolist()) == set(left.tolist()) == set(range(25))


def test_detail_within_each_weighted_source(tmp_path: Path) -> None:
    one, two, three = numbered(tmp_path, (40, 40), (40, 40), (40, 40))
    save(np.full((40, 40, 3), 2, np.uint8), three / "p.png")  # no detail at all, but a weight
    sources = [Source(one, weight=1), Source(two, weight=1), Source(three, weight=2)]
    cache = build_cache(sources, tmp_path / "cache")
    numbers = levels(hr_patches(Patches(cache, 16, CPU, seeded(), 1.0), 6000))[:, 2, 0, 0]
    np.testing.assert_allclose(np.bincount(numbers) / 6000, [0.25, 0.25, 0.5], atol=0.039)


# Bad files


def test_too_many_bad_files_are_refused_and_the_limit_is_kept_apart_from_the_cache(tmp_path: Path) -> None:
    save(noise(20, 20), tmp_path / "in" / "good.png")
    for name in ("x.png", "y\n\x1b[31m.jpg"):
        (tmp_path / "in" / name).write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(UsageError, match=r"2 of 3 files.*max_bad_share = 0.5 allows") as caught:
            build_cache([tmp_path / "in"], tmp_path / "cache", max_bad_share=0.5)
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)
    assert len(build_cache([tmp_path / "in"], tmp_path / "cache", max_bad_share=0.7)) == 1


def test_files_that_vanish_or_cannot_be_read_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    for name in ("a.png", "b.png", "c.png"):
        save(noise(20, 20), folder / name)

    def then_moved(sources: list[Source], scale: int) -> list[File]:
        files = list_files(sources, scale)
        (folder / "b.png").rename(tmp_path / "elsewhere.png")
        return files

    monkeypatch.setattr(data, "list_files", then_moved)
    cache = build_cache([folder], tmp_path / "cache")
    assert cache.names == ["a.png", "c.png"]
    assert cache.skipped[0][0] == "b.png"
    monkeypatch.setattr(data, "list_files", list_files)
    real = pictures.decode

    def unreadable(path: Path) -> pictures.Picture:
        if path.name == "c.png":
            raise OSError(5, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr(pictures, "decode", unreadable)
    save(noise(20, 21), folder / "d.png")
    assert build_cache([folder], tmp_path / "cache").names == ["a.png", "d.png"]


def test_a_file_is_read_again_once_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(noise(20, 20), tmp_path / "in" / "a.png")
    save(noise(20, 20, 1), tmp_path / "in" / "b.png")
    path.chmod(0o000)
    real = pictures.decode

    def denied(source: Path) -> pictures.Picture:  # the tests may run as root, whom no mode stops
        if not source.stat().st_mode & 0o400:
            raise PictureError(f"{source}: cannot be read: Permission denied")
        return real(source)

    monkeypatch.setattr(pictures, "decode", denied)
    assert build_cache([tmp_path / "in"], tmp_path / "cache").names == ["b.png"]
    path.chmod(0o644)
    assert build_cache([tmp_path / "in"], tmp_path / "cache").names == ["a.png", "b.png"]


def test_odd_names_are_packed(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xff.png")  # not UTF-8
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(save(noise(20, 20), tmp_path / "a.png").read_bytes())
    for _ in range(2):
        assert build_cache([tmp_path / "in"], tmp_path / "cache").names == [name]


def test_results_come_in_order_and_no_thread_is_left() -> None:
    before, gates = threading.active_count(), [threading.Event() for _ in range(6)]
    gates[3].set()

    def wait(index: int) -> int:
        gates[index].wait(10)
        if index < 5:
            gates[(0, 2, 1, 0, 5)[index]].set()  # they finish as 3, 0, ... , never in their order
        return -index

    gates[0].set()
    gates[1].set()
    gates[4].set()
    assert list(in_order(wait, range(6), workers=6)) == [(index, -index) for index in range(6)]

    def bad(index: int) -> int:
        if index == 2:
            raise KeyError(index)
        return index

    with pytest.raises(KeyError):
        list(in_order(bad, range(100), workers=2))
    assert threading.active_count() == before


def test_only_a_few_results_wait_in_memory() -> None:
    done: list[int] = []
    stream: Iterator[tuple[int, None]] = in_order(lambda item: done.append(item), range(100), workers=2)
    for taken, _ in enumerate(stream, start=1):
        assert len(done) <= taken + 5


# The cache


def suffixes(cache: Path) -> set[str]:
    """Of all files but the lock, which may lie there from use to use."""
    return {path.suffix for path in cache.iterdir() if path.name != ".lock"}


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from srgan import pictures
    from srgan.training.data import cache as data
    from srgan.training.data import sources

    source, cache = Path(sys.argv[1]), Path(sys.argv[2])

    def die(*_args, **_kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def on_call(module, name, number):
        real, calls = getattr(module, name), []
        def counting(*args, **kwargs):
            calls.append(name)
            return die() if len(calls) == number else real(*args, **kwargs)
        setattr(module, name, counting)

    points = [(pictures, "decode", 1), (pictures, "decode", 4), (os, "fsync", 1), (Path, "replace", 1),
              (data, "write_atomically", 1), (os, "fsync", 2), (Path, "replace", 2)]
    for point in points:
        pid = os.fork()
        if not pid:
            on_call(*point)
            data.build_cache([source], cache)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        indices, left_over = (len(list(cache.glob(pattern))) for pattern in ("*.index", "*.srgan-part"))
        print(point[1], point[2], os.waitstatus_to_exitcode(status), indices, left_over)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_kill_at_any_moment_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    for index in range(6):
        save(noise(20 + index, 30, index), tmp_path / "in" / f"{index}.png")
    finished = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            textwrap.dedent(KILLED),
            str(tmp_path / "in"),
            str(tmp_path / "cache"),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    rows = [line.split() for line in finished.stdout.splitlines()]
    assert len(rows) == 7
    assert {row[2] for row in rows} == {"-9"}
    assert {row[3] for row in rows} == {"0"}, rows
    assert [row[4] for row in rows] == ["1", "1", "1", "1", "0", "1", "1"]
    cache = build_cache([tmp_path / "in"], tmp_path / "cache")
    for index in range(6):
        assert np.array_equal(cache.picture(index).numpy(), noise(20 + index, 30, index))
    assert suffixes(tmp_path / "cache") == {".index", ".pixels"}


@pytest.mark.parametrize("locked", [True, False])
def test_builders_at_once_do_not_harm_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    for index in range(6):
        save(noise(24, 30, index), tmp_path / "in" / f"{index}.png")
    decoded, real = [], pictures.decode

    def counted(path: Path) -> pictures.Picture:
        decoded.append(path)
        return real(path)

    monkeypatch.setattr(pictures, "decode", counted)
    if not locked:
        monkeypatch.setattr(data, "locked", lambda _folder: contextlib.nullcontext(False))
    caches = at_once(lambda _: build_cache([tmp_path / "in"], tmp_path / "cache"), range(4))
    for cache in caches:
        for index in range(6):
            assert np.array_equal(cache.picture(index).numpy(), noise(24, 30, index))
    if locked:
        assert len(decoded) == 6  # the others waited and found it done
    assert suffixes(tmp_path / "cache") == {".index", ".pixels"}


def test_what_another_process_is_packing_is_not_swept_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(noise(20, 20), tmp_path / "in" / "a.png")
    (tmp_path / "cache").mkdir()
    other = tmp_path / "cache" / ".0123456789abcdef.srgan-part"
    other.write_bytes(b"half")
    with monkeypatch.context() as without_lock:
        without_lock.setattr(data, "locked", lambda _folder: contextlib.nullcontext(False))
        build_cache([tmp_path / "in"], tmp_path / "cache")
    assert other.exists()


@pytest.mark.parametrize("damage", [b"", b"x", b"\0" * 100, None])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    save(noise(20, 20), tmp_path / "in" / "a.png")
    build_cache([tmp_path / "in"], tmp_path / "cache")
    (index,) = (tmp_path / "cache").glob("*.index")
    index.write_bytes(index.read_bytes()[:-3] if damage is None else damage)
    assert np.array_equal(build_cache([tmp_path / "in"], tmp_path / "cache").picture(0).numpy(), noise(20, 20))


def test_the_same_contents_elsewhere_share_their_pixels(tmp_path: Path) -> None:
    save(noise(20, 20), tmp_path / "in" / "a.png")
    build_cache([tmp_path / "in"], tmp_path / "cache")
    (tmp_path / "in").rename(tmp_path / "moved")
    build_cache([tmp_path / "moved"], tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 1


def test_a_cache_larger_than_memory(tmp_path: Path) -> None:
    """A sparse one of 4 TB, more than any machine that runs this has."""
    save(noise(64, 64), tmp_path / "in" / "a.png")
    build_cache([tmp_path / "in"], tmp_path / "cache")
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    size = 4 * 2**40
    try:
        os.truncate(pixels, size)
    except OSError:
        pytest.skip("this file system has no files of 4 TB")
    from safetensors.torch import load_file, save_file

    (index,) = (tmp_path / "cache").glob("*.index")
    columns = load_file(index)
    header = json.loads(columns["header"].numpy().tobytes())
    header["bytes"] = size
    columns["header"] = torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)
    last = size - 64 * 64 * 3
    columns["offsets"] = torch.tensor([last])
    save_file(columns, index)
    with pixels.open("r+b") as file:
        file.seek(last)
        file.write(noise(64, 64, 1).tobytes())
    cache = build_cache([tmp_path / "in"], tmp_path / "cache")
    assert cache.pixels.numel() == size
    drawn = levels(hr_patches(Patches(cache, 64, CPU, seeded()), 3))
    assert torch.equal(drawn.flatten().sort().values.unique(), torch.arange(256))
    assert np.array_equal(cache.picture(0).numpy(), noise(64, 64, 1))
