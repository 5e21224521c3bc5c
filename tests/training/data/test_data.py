"""The picture cache and the patches drawn from it, against plain numpy on the source pictures."""

from __future__ import annotations

import collections
import errno
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.caches import cache_of, hr_patches

from srgan import pictures
from srgan.errors import TrainingError, UsageError
from srgan.training.config import DataRecipe
from srgan.training.data import cache as data
from srgan.training.data.cache import build_cache, split
from srgan.training.data.patches import Patches

CPU = torch.device("cpu")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two pictures of different sizes, one of them in a folder below."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    Image.fromarray(picture(20, 30, 1)).save(folder / "a.png")
    Image.fromarray(picture(33, 21, 2)).save(folder / "below" / "b.PNG")
    return folder


def test_the_cache_holds_the_pictures(photos: Path, tmp_path: Path) -> None:
    cache = build_cache([photos], tmp_path / "cache")
    assert len(cache) == 2
    assert cache.names == ["a.png", "b.PNG"]
    assert np.array_equal(cache.picture(0).numpy(), picture(20, 30, 1))
    assert np.array_equal(cache.picture(1).numpy(), picture(33, 21, 2))
    assert cache.pixels.dtype == torch.uint8


def test_several_folders(photos: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    Image.fromarray(picture(16, 16, 3)).save(more / "c.png")
    cache = build_cache([photos, more], tmp_path / "cache")
    assert sorted(cache.names) == ["a.png", "b.PNG", "c.png"]


def test_a_second_call_decodes_nothing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_cache([photos], tmp_path / "cache")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(pictures, "decode", never)
    second = build_cache([photos], tmp_path / "cache")
    assert torch.equal(first.pixels, second.pixels)
    assert (first.names, first.sha256) == (second.names, second.sha256)


def changed_content(folder: Path) -> None:
    path = folder / "a.png"
    Image.fromarray(picture(20, 30, 9)).save(path)
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1_000_000))


def changed_list(folder: Path) -> None:
    Image.fromarray(picture(16, 16, 4)).save(folder / "d.png")


def removed_one(folder: Path) -> None:
    (folder / "a.png").unlink()


@pytest.mark.parametrize("change", [changed_content, changed_list, removed_one])
def test_a_changed_folder_is_packed_anew(photos: Path, tmp_path: Path, change: object) -> None:
    before = build_cache([photos], tmp_path / "cache")
    change(photos)  # type: ignore[operator]
    after = build_cache([photos], tmp_path / "cache")
    assert after.sha256 != before.sha256
    for index, name in enumerate(after.names):
        (path,) = photos.rglob(name)
        assert np.array_equal(after.picture(index).numpy(), np.asarray(Image.open(path)))


def test_the_hash_is_of_the_contents_and_not_of_the_place(photos: Path, tmp_path: Path) -> None:
    here = build_cache([photos], tmp_path / "cache")
    moved = photos.rename(tmp_path / "moved")
    assert build_cache([moved], tmp_path / "other").sha256 == here.sha256


def test_a_cache_cut_off_while_it_was_written_is_not_used(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = pictures.decode, []

    def interrupted(path: Path) -> pictures.Picture:
        seen.append(path)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(pictures, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_cache([photos], tmp_path / "cache")
    cache = build_cache([photos], tmp_path / "cache")
    assert np.array_equal(cache.picture(1).numpy(), picture(33, 21, 2))


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_pixels_that_went_missing_are_packed_anew(photos: Path, tmp_path: Path, damage: str) -> None:
    build_cache([photos], tmp_path / "cache")
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    if damage == "cut":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    else:
        pixels.unlink()
    assert np.array_equal(build_cache([photos], tmp_path / "cache").picture(1).numpy(), picture(33, 21, 2))


def test_a_full_disk_is_said_and_leaves_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(data, "write_atomically", full)
    with pytest.raises(TrainingError, match="No space left on device; make room"):
        build_cache([photos], tmp_path / "cache")
    assert {path.suffix for path in (tmp_path / "cache").iterdir() if path.name != ".lock"} == {".pixels"}
    monkeypatch.undo()
    assert len(build_cache([photos], tmp_path / "cache")) == 2


def test_folders_that_overlap_give_each_picture_once(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(photos)
    once = build_cache([photos], tmp_path / "cache")
    thrice = build_cache([photos, photos / "below", tmp_path / "link"], tmp_path / "cache")
    assert (thrice.names, thrice.sha256) == (once.names, once.sha256)


def test_bad_files_are_named_and_left_out(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = (photos / "a.png").read_bytes()
    (photos / "torn.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.png").write_text("no picture at all")
    with caplog.at_level(logging.WARNING):
        cache = build_cache([photos], tmp_path / "cache")
    assert cache.names == ["a.png", "b.PNG"]
    for name in ("torn.png", "empty.jpg", "text.png"):
        assert sum(name in record.getMessage() for record in caplog.records) == 1
    assert np.array_equal(cache.picture(1).numpy(), picture(33, 21, 2))


def test_grey_palette_and_transparent_pictures_become_rgb(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    grey = picture(17, 19, 5)[..., 0]
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(picture(16, 18, 6)).quantize(16).save(folder / "palette.png")
    Image.fromarray(np.dstack([picture(18, 16, 7), grey[:1, :1].repeat(18, 0).repeat(16, 1)])).save(
        folder / "rgba.png"
    )
    cache = build_cache([folder], tmp_path / "cache")
    packed = {name: cache.picture(index).numpy() for index, name in enumerate(cache.names)}
    assert packed.keys() == {"grey.png", "palette.png", "rgba.png"}
    assert np.array_equal(packed["grey.png"], np.dstack([grey] * 3))
    assert np.array_equal(packed["palette.png"], np.asarray(Image.open(folder / "palette.png").convert("RGB")))
    alpha = grey[0, 0] / 255
    assert np.array_equal(packed["rgba.png"], np.rint(picture(18, 16, 7) * alpha + 255 * (1 - alpha)))


def test_hidden_and_other_files_are_passed_over(photos: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(16, 16, 4)).save(photos / ".hidden.png")
    (photos / "notes.txt").write_text("not a picture, and not meant to be one")
    (photos / "folder.png").mkdir()
    assert build_cache([photos], tmp_path / "cache").names == ["a.png", "b.PNG"]


def test_missing_empty_and_unreadable_folders(tmp_path: Path, photos: Path) -> None:
    empty, hopeless = tmp_path / "empty", tmp_path / "hopeless"
    empty.mkdir()
    hopeless.mkdir()
    (hopeless / "x.png").write_bytes(b"no")
    for folder, part in (
        (tmp_path / "absent", "is not a folder"),
        (photos / "a.png", "is not a folder"),
        (empty, "no pictures below"),
        (hopeless, "none of the 1 files below"),
    ):
        for _ in range(2):  # the second attempt meets whatever the first left in the cache
            with pytest.raises(UsageError, match=part) as caught:
                build_cache([folder], tmp_path / "cache")
            assert str(folder) in str(caught.value)
            assert "\n" not in str(caught.value)


def dihedral(patch: np.ndarray) -> list[np.ndarray]:
    """The eight turns and flips of (P,P,3), by numpy alone."""
    turns = [np.rot90(patch, quarter) for quarter in range(4)]
    return turns + [turn[:, ::-1] for turn in turns]


def located(patch: np.ndarray, source: np.ndarray) -> tuple[int, int, int] | None:
    """(top, left, which of the eight) of `patch` in `source`, or None."""
    size = patch.shape[0]
    for kind, candidate in enumerate(dihedral(patch)):
        windows = np.lib.stride_tricks.sliding_window_view(source, (size, size), axis=(0, 1))
        hits = np.argwhere((np.moveaxis(windows, 2, -1) == candidate).all(axis=(2, 3, 4)))
        if len(hits):
            return int(hits[0][0]), int(hits[0][1]), kind
    return None


def test_patches_are_crops_of_the_sources_in_all_eight_attitudes() -> None:
    sources = [picture(21, 18, 1), picture(16, 25, 2), picture(16, 16, 3)]
    patches = Patches(cache_of(*sources), 16, CPU, seeded())
    drawn = hr_patches(patches, 200)
    assert drawn.shape == (200, 3, 16, 16)
    assert drawn.dtype == torch.float32
    attitudes, origins = set(), set()
    for patch in (drawn.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8):
        hits = [(index, located(patch, source)) for index, source in enumerate(sources)]
        ((index, place),) = [hit for hit in hits if hit[1] is not None]
        assert place is not None
        attitudes.add(place[2])
        origins.add(index)
    assert attitudes == set(range(8))
    assert origins == {0, 1, 2}


def test_values_are_exact_levels_and_channels_last() -> None:
    drawn = hr_patches(Patches(cache_of(picture(20, 20)), 16, CPU, seeded()), 4)
    assert torch.equal(drawn, (drawn * 255).round() / 255)
    assert drawn.is_contiguous(memory_format=torch.channels_last)


def marked(height: int, width: int, number: int) -> np.ndarray:
    """A picture whose every pixel says where it stands: (row, column, number)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.full_like(y, number)], axis=2).astype(np.uint8)


def test_every_position_is_equally_likely() -> None:
    """Of 3×5 positions in one picture and 1×2 in the other, all are met, edges among them, equally often."""
    count = 17_000
    patches = Patches(cache_of(marked(10, 12, 0), marked(8, 9, 1)), 8, CPU, seeded())
    levels = (hr_patches(patches, count) * 255).round().long()
    corners = levels.amin(dim=(2, 3))  # the flips move the corner about; the least row and column are its own
    places = collections.Counter(map(tuple, corners.tolist()))
    expected = {(row, column, 0) for row in range(3) for column in range(5)} | {(0, 0, 1), (0, 1, 1)}
    assert set(places) == expected
    # Each is binomial with mean 1000 and deviation 31: six of them make one failure in 10⁸ sound seeds.
    assert all(abs(times - 1000) < 186 for times in places.values())


def test_flips_are_equally_likely() -> None:
    patches = Patches(cache_of(marked(8, 8, 0)), 8, CPU, seeded())
    levels = (hr_patches(patches, 8000) * 255).round().long()
    corners = torch.stack([levels[:, :2, 0, 0], levels[:, :2, 0, 1]], dim=1).flatten(1)
    counts = collections.Counter(map(tuple, corners.tolist()))
    assert len(counts) == 8
    assert all(abs(times - 1000) < 180 for times in counts.values())


def test_the_same_seed_gives_the_same_patches_and_another_does_not() -> None:
    cache = cache_of(picture(30, 30), picture(40, 20, 1))
    one, same, other = (hr_patches(Patches(cache, 16, CPU, seeded(s)), 8) for s in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_drawing_resumes_from_the_generators_state() -> None:
    cache, random = cache_of(picture(30, 30)), seeded()
    patches = Patches(cache, 16, CPU, random)
    hr_patches(patches, 5)
    state = random.get_state()
    ahead = [hr_patches(patches, 3), hr_patches(patches, 7)]
    resumed = seeded(99)
    resumed.set_state(state)
    again = Patches(cache, 16, CPU, resumed)
    assert all(torch.equal(hr_patches(again, len(batch)), batch) for batch in ahead)


def test_drawing_leaves_the_global_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    hr_patches(Patches(cache_of(picture(30, 30)), 16, CPU, seeded()), 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_pictures_that_are_too_small_are_never_drawn(caplog: pytest.LogCaptureFixture) -> None:
    sources = [marked(15, 40, 1), marked(16, 17, 2), marked(40, 15, 3), marked(4, 4, 4), marked(16, 16, 5)]
    with caplog.at_level(logging.WARNING):
        patches = Patches(cache_of(*sources), 16, CPU, seeded())
    assert "3 pictures are smaller" in caplog.text
    numbers = (hr_patches(patches, 300) * 255).round()[:, 2].flatten(1)
    assert torch.equal(numbers.amin(1), numbers.amax(1))
    assert set(numbers[:, 0].tolist()) == {2.0, 5.0}


@pytest.mark.parametrize("sources", [[marked(15, 40, 1)], [marked(15, 40, 1), marked(40, 8, 2)]])
def test_only_small_pictures_are_an_error(sources: list[np.ndarray]) -> None:
    with pytest.raises(UsageError, match="no training picture is at least 16 px on both sides"):
        Patches(cache_of(*sources), 16, CPU, seeded())


def test_an_empty_cache_is_an_error() -> None:
    with pytest.raises(UsageError, match="no training picture"):
        Patches(cache_of(picture(20, 20)).subset([]), 16, CPU, seeded())


def test_subset_shares_the_pixels() -> None:
    sources = [picture(10 + index, 12, index) for index in range(4)]
    cache = cache_of(*sources)
    some = cache.subset([3, 1])
    assert some.names == ["3.png", "1.png"]
    assert np.array_equal(some.picture(0).numpy(), sources[3])
    assert np.array_equal(some.picture(1).numpy(), sources[1])
    assert some.pixels.data_ptr() == cache.pixels.data_ptr()


def test_split_is_disjoint_complete_and_settled_by_its_seed() -> None:
    cache = cache_of(*(picture(4, 4, index) for index in range(40)))
    training, validation = split(cache, DataRecipe(held_out=6, split_seed=1))
    assert len(validation) == 6
    assert sorted(training.names + validation.names) == sorted(cache.names)
    assert split(cache, DataRecipe(held_out=6, split_seed=1))[1].names == validation.names
    assert split(cache, DataRecipe(held_out=6, split_seed=2))[1].names != validation.names


@pytest.mark.parametrize(("count", "asked", "given"), [(4, 8, 0), (5, 8, 1), (12, 8, 2), (40, 8, 8), (40, 0, 0)])
def test_never_more_than_a_fifth_is_held_out(count: int, asked: int, given: int) -> None:
    cache = cache_of(*(picture(4, 4, index) for index in range(count)))
    training, validation = split(cache, DataRecipe(held_out=asked))
    assert (len(training), len(validation)) == (count - given, given)


def test_a_disk_without_room_is_known_before_the_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        Image.fromarray(picture(40, 30, index)).save(tmp_path / f"{index}.png")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3 * 3 * 40 * 30 - 1))
    monkeypatch.setattr(data, "try_examine", pytest.fail)
    with pytest.raises(TrainingError, match=r"cannot hold the decoded pictures: 3 pictures take .* GB are free"):
        build_cache([tmp_path], tmp_path / "cache")
