"""Folders: planned first, mirrored, never colliding, one bad file at a time."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.folders import NearestEngine, options_of

from srgan.errors import UsageError
from srgan.folder import manifest, planning
from srgan.folder.batch import run
from srgan.folder.planning import Naming, Plan, plan
from srgan.folder.reporting import FileReport
from srgan.pictures import FORMATS, Picture, decode, encode
from srgan.upscale import Request, Upscaler

UPSCALER = Upscaler(engine=NearestEngine())


def picture(path: Path, width: int = 6, height: int = 5, **parts: object) -> Path:
    """Write a small picture, in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), (10, 200, 90), np.uint8)
    image = Image.fromarray(pixels)
    if path.suffix.lower() in (".gif", ".pbm"):
        image = image.convert("P" if path.suffix == ".gif" else "1")
        image.save(path)
    else:
        formats = {".tif": "tiff", ".jpeg": "jpg", ".pgm": "ppm"}
        suffix = path.suffix.lower()
        path.write_bytes(encode(Picture(pixels, **parts), formats.get(suffix, suffix[1:])))  # type: ignore[arg-type]
    return path


def done(plan: Plan, progress: Callable[[float], None] | None = None, **options: object) -> list[FileReport]:
    return list(run(plan, UPSCALER, options_of(**options), progress=progress))


def names(plan: Plan, base: Path) -> dict[str, str]:
    return {str(job.source.relative_to(base)): str(job.target.relative_to(base)) for job in plan}


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not path.is_dir() and path.parent.name != manifest.FOLDER
    }


# Planning


def test_results_are_called_as_the_template_says(tmp_path: Path) -> None:
    source = picture(tmp_path / "cup.png")

    def name(size: str, template: str, **fields: Any) -> str:
        naming = Naming(size, template=template, **fields)
        return next(iter(plan([source], None, naming))).target.name

    assert name("x4", "{stem}_{size}") == "cup_x4.png"
    assert name("x2.5", "{stem}_{model}_x{scale}", model="srgan-x4") == "cup_srgan-x4_x2.5.png"
    assert name("2000px", "{strength} {stem} {size}", strength=0.5) == "0.5 cup 2000px.png"
    assert name("x4", "v1.2 {stem}") == "v1.2 cup.png"
    folder = picture(tmp_path / "in" / "a.gif").parent
    (tree_job,) = plan([folder], None, Naming("x4", template="{stem}-big"))
    assert tree_job.target == tmp_path / "in-big" / "a-big.gif"
    for template in ("{stem", "{nothing}", "{}", "{stem.__class__}", "{0}", "", "..", "a/{stem}", "{stem}\\"):
        with pytest.raises(UsageError, match="--name"):
            Naming("x4", template=template)
    with pytest.raises(UsageError, match="no name of a file"):
        name("x4", "{stem}_{model}", model="../../x")
    both = [source, picture(tmp_path / "other" / "b.png")]
    (refused,) = plan(both, tmp_path / "out", Naming("x4", template="same")).refused()
    assert "would both become" in refused[1]


def test_a_file_lands_beside_itself_in_a_folder_or_where_it_is_told(tmp_path: Path) -> None:
    source = picture(tmp_path / "photo.JPG")
    assert next(iter(plan([source], None, Naming()))).target == tmp_path / "photo_x4.jpg"
    assert (
        next(iter(plan([source], tmp_path / "out", Naming("x2.5")))).target == tmp_path / "out" / "photo_x2.5.jpg"
    )
    job = next(iter(plan([source], tmp_path / "result.webp", Naming())))
    assert (job.target, job.format) == (tmp_path / "result.webp", "webp")
    (tmp_path / "folder.png").mkdir()
    job = next(iter(plan([source], tmp_path / "folder.png", Naming())))
    assert job.target == tmp_path / "folder.png" / "photo_x4.jpg"


def test_a_folder_becomes_the_same_tree(tmp_path: Path) -> None:
    for name in ("a.png", "sub/a.png", "sub/deep/b.jpeg", "sub/c.gif", "d.tif", "e.pbm"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    expected = {
        "in/a.png": "out/a_x4.png",
        "in/d.tif": "out/d_x4.tif",
        "in/e.pbm": "out/e_x4.ppm",
        "in/sub/a.png": "out/sub/a_x4.png",
        "in/sub/c.gif": "out/sub/c_x4.gif",
        "in/sub/deep/b.jpeg": "out/sub/deep/b_x4.jpeg",
    }
    planned = plan([tmp_path / "in"], tmp_path / "out", Naming())
    assert names(planned, tmp_path) == expected
    beside = {source: target.replace("out", "in_x4") for source, target in expected.items()}
    assert names(plan([tmp_path / "in"], None, Naming()), tmp_path) == beside
    reports = done(planned)
    assert {report.status for report in reports} == {"written"}
    assert files(tmp_path / "out") == {target.removeprefix("out/") for target in expected.values()}
    assert reports[0].source_size == (6, 5)
    assert reports[0].size == (24, 20)
    # Of one colour, so that even GIF holds it.
    assert [report.warnings for report in reports if report.source.suffix == ".gif"] == [()]
    for report in reports:
        assert report.target is not None
        assert decode(report.target).width == 24


def test_the_folder_may_be_named_in_any_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "in" / "sub" / "a.png")
    monkeypatch.chdir(tmp_path / "in" / "sub")
    for name in (Path(), Path("..", "sub"), Path("../sub/")):
        (job,) = plan([name], None, Naming())
        assert job.target.resolve() == tmp_path / "in" / "sub_x4" / "a_x4.png"
    (job,) = plan([Path("..")], None, Naming())
    assert job.target.resolve() == tmp_path / "in_x4" / "sub" / "a_x4.png"


def test_a_format_for_all(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.gif")
    planned = plan([tmp_path], tmp_path / "out", Naming(), format="jpeg")
    assert {job.target.name for job in planned} == {"a_x4.jpg", "b_x4.jpg"}
    assert all(decode(report.target).format == "jpg" for report in done(planned) if report.target)


def test_what_is_passed_over_is_counted_and_named(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "e.png")
    (tmp_path / "in" / "sub").mkdir()
    for name in ("a.jxl", "b.tga", "c.jpg_large", "sub/d", ".hidden"):
        (tmp_path / "in" / name).write_text("")
    planned = plan([tmp_path / "in"], tmp_path / "out", Naming())
    assert len(planned) == 1
    assert planned.passed_over.count == 4
    assert {path.name for path in planned.passed_over.first} == {"a.jxl", "b.tga", "c.jpg_large", "d"}
    for number in range(30):
        (tmp_path / "in" / f"{number:02}.txt").write_text("")
    assert str(plan([tmp_path / "in"], tmp_path / "out", Naming()).passed_over).endswith(" and 24 more")


def test_hidden_files_and_folders_are_left_alone(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for name in (".hidden.png", "._a.png", ".folder/a.png", "__MACOSX/._a.png"):
        picture(tmp_path / name)
    assert [job.source.name for job in plan([tmp_path], tmp_path / "out", Naming())] == ["a.png"]


def test_results_inside_the_input_are_not_inputs(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for status in ("written", "skipped"):
        planned = plan([tmp_path], tmp_path / "out" / "here", Naming())
        assert [report.status for report in done(planned)] == [status]
    assert files(tmp_path) == {"a.png", "out/here/a_x4.png"}


def test_links_out_of_the_tree_are_not_followed(tmp_path: Path) -> None:
    outside = picture(tmp_path / "outside" / "secret.png")
    inside = picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "link.png").symlink_to(outside)
    (tmp_path / "in" / "folder").symlink_to(outside.parent)
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "inner.png").symlink_to(inside)
    planned = plan([tmp_path / "in"], tmp_path / "out", Naming())
    assert [job.source.name for job in planned] == ["a.png", "inner.png"]
    named = plan([tmp_path / "in" / "link.png"], tmp_path / "out", Naming())
    assert len(named) == 1  # who names a link means it


def test_a_name_without_a_pictures_suffix_is_all_stem(tmp_path: Path) -> None:
    source = picture(tmp_path / "x.jpg").rename(tmp_path / "photo.v2")
    (report,) = done(plan([source], None, Naming()))
    assert report.target == tmp_path / "photo.v2_x4.jpg"


def test_the_same_file_twice_is_done_once(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    assert len(plan([source, source], tmp_path / "out", Naming())) == 1


def test_of_two_that_would_be_one_file_the_first_is_made_and_the_other_fails(tmp_path: Path) -> None:
    picture(tmp_path / "one" / "a.png")
    picture(tmp_path / "one" / "a.jpg")
    picture(tmp_path / "two" / "a.png")
    picture(tmp_path / "case" / "b.png")
    picture(tmp_path / "case" / "b.PNG")
    one, two, case, out = (tmp_path / name for name in ("one", "two", "case", "out"))
    assert len(plan([one], out, Naming())) == 2  # a_x4.png and a_x4.jpg
    for inputs, format, first, second in [
        ([one], "png", "one/a.jpg", "one/a.png"),
        ([two, one], "png", "two/a.png", "one/a.jpg"),
        ([case], "auto", "case/b.PNG", "case/b.png"),
    ]:
        planned = plan(inputs, out, Naming(), format=format)
        assert [job.source for job in planned] == [tmp_path / first]
        source, reason = next(planned.refused())
        assert (source, len(planned)) == (tmp_path / second, 1)
        assert f"{tmp_path / first} and {tmp_path / second} would both become" in reason
    reports = done(plan([case], out, Naming()))
    assert {(report.source.name, report.status) for report in reports} == {
        ("b.png", "failed"),
        ("b.PNG", "written"),
    }
    (report,) = done(plan([case], tmp_path / "fast", Naming()), fail_fast=True)
    assert report.status == "failed"
    assert not (tmp_path / "fast").exists()


def test_names_of_any_bytes_are_told_apart(tmp_path: Path) -> None:
    for name in (b"\xff.png", b"\xff.gif", b"\xfe.png"):
        picture(tmp_path / "in" / "x.png").rename(tmp_path / "in" / os.fsdecode(name))
    planned = plan([tmp_path / "in"], tmp_path / "out", Naming(), format="png")
    assert [os.fsencode(job.source.name) for job in planned] == [b"\xfe.png", b"\xff.gif"]
    ((source, reason),) = planned.refused()
    assert os.fsencode(source.name) == b"\xff.png"
    assert os.fsdecode(b"/\xff.gif and ") in reason


def test_an_input_is_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = picture(tmp_path / "a.png")
    other = picture(tmp_path / "a_x4.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for out in (source, Path("sub", "..", "a.png")):
        with pytest.raises(UsageError, match="would be overwritten"):
            plan([source], out, Naming())
    with pytest.raises(UsageError, match="another -o"):
        plan([tmp_path], tmp_path, Naming())
    before = other.read_bytes()
    reports = done(plan([source, other], None, Naming()))
    assert {report.source: report.status for report in reports} == {source: "failed", other: "written"}
    assert "would be overwritten" in str(reports[0].error)
    assert other.read_bytes() == before


@pytest.mark.parametrize("name", [".png", ".JPG", "x" * 300, "x" * 300 + ".png"])
def test_a_place_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    source = picture(tmp_path / "in" / "a.png")
    for inputs in ([source], [source.parent]):
        with pytest.raises(UsageError, match=r"another -o|give -o a name"):
            plan(inputs, tmp_path / name, Naming())
    with pytest.raises(UsageError, match=r"another -o|give -o a name"):
        planning.tree([source.parent], tmp_path / name, Naming())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_pictures_are_known_without_their_suffix(tmp_path: Path) -> None:
    """By how they begin, and called after what they are; text is none, whatever its first letters."""
    for suffix in ("png", "jpg", "webp", "tiff", "gif", "bmp", "ppm", "avif"):
        picture(tmp_path / "in" / f"x.{suffix}").rename(tmp_path / "in" / f"of {suffix}")
    for name, start in [
        ("BMW", "BMW is a maker of cars and motorcycles"),
        ("P", "P"),
        ("GIF", "GIF"),
        ("none", ""),
    ]:
        (tmp_path / "in" / name).write_text(start)
    os.mkfifo(tmp_path / "in" / "pipe")
    planned = plan([tmp_path / "in"], tmp_path / "out", Naming("x2"))
    assert planned.passed_over.count == 5
    reports = done(planned)
    assert all(report.status == "written" for report in reports)
    assert not any("in truth" in warning for report in reports for warning in report.warnings)
    for report in reports:
        assert report.target is not None
        format = report.source.name.removeprefix("of ")
        assert report.target.name == f"of {format}_x2{FORMATS[format].suffixes[0]}"
        assert decode(report.target).format == format


def test_files_of_several_pictures_are_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "x.jpg").rename(tmp_path / "in" / "a.MPO")
    picture(tmp_path / "in" / "x.avif").rename(tmp_path / "in" / "b.avifs")
    planned = plan([tmp_path / "in"], tmp_path / "out", Naming())
    assert [job.target.name for job in planned] == ["a_x4.jpg", "b_x4.avif"]
    assert [report.status for report in done(planned)] == ["written", "written"]


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    source = picture(tmp_path / "in" / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    (tmp_path / "file").write_text("")
    for inputs, out, format, reason in [
        ([tmp_path / "missing.png"], None, "auto", "no such file"),
        ([source, tmp_path / "missing"], None, "auto", "no such file"),
        ([tmp_path / "empty"], None, "auto", "no pictures"),
        ([source], None, "psd", "unknown format"),
        ([source], None, "bogus", "unknown format"),
        ([source], tmp_path / "x.heic", "auto", "cannot be written"),
        ([source], tmp_path / "x.png", "jpg", "leave one"),
        ([source, source], tmp_path / "x.png", "auto", "names one picture"),
        ([tmp_path / "in"], tmp_path / "x.png", "auto", "names one picture"),
        ([source], tmp_path / "file", "auto", "is a file"),
        ([tmp_path / "in"], tmp_path / "file", "auto", "is a file"),
        ([Path("/")], None, "auto", "no place beside"),
    ]:
        with pytest.raises(UsageError, match=reason):
            plan(inputs, out, Naming(), format=format)


# Running


def test_one_bad_file_never_stops_the_others(tmp_path: Path) -> None:
    good = [picture(tmp_path / "in" / name) for name in ("a.png", "c.png", "f.png", "z.png")]
    (tmp_path / "in" / "b.png").write_bytes(b"junk")
    (tmp_path / "in" / "d.png").write_bytes(good[0].read_bytes()[:48])
    (tmp_path / "in" / "e.png").touch()
    os.mkfifo(tmp_path / "in" / "g.png")
    picture(tmp_path / "in" / "h.png", width=13)  # the engine fails on it
    (tmp_path / "in" / "i.png").symlink_to("nowhere.png")
    (tmp_path / "in" / "j.png").mkdir()
    reports = done(plan([tmp_path / "in"], tmp_path / "out", Naming()))
    assert [report.source.name for report in reports if report.status == "written"] == [path.name for path in good]
    failed = {report.source.name: report for report in reports if report.status == "failed"}
    assert sorted(failed) == ["b.png", "d.png", "e.png", "g.png", "h.png", "i.png"]
    for name, report in failed.items():
        assert report.error is not None
        assert name in report.error
        assert "\n" not in report.error
        assert report.target is None
    assert "out of order" in (failed["h.png"].error or "")
    assert files(tmp_path / "out") == {"a_x4.png", "c_x4.png", "f_x4.png", "z_x4.png"}


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "locked").mkdir()
    really_scan = os.scandir

    def scandir(path: Path | str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return really_scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    planned = plan([tmp_path / "in"], tmp_path / "out", Naming())
    monkeypatch.undo()
    reports = done(planned)
    assert [(report.source.name, report.status) for report in reports] == [
        ("locked", "failed"),
        ("a.png", "written"),
    ]
    assert "Permission denied" in (reports[0].error or "")


def test_a_target_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    blocked = tmp_path / "out" / "a_x4.png"
    blocked.mkdir(parents=True)
    long = picture(tmp_path / "a.png").rename(tmp_path / ("x" * 251 + ".png"))
    picture(tmp_path / "a.png")
    reports = done(plan([source, long], tmp_path / "out", Naming()))
    assert [report.status for report in reports] == ["failed", "failed"]
    assert "Is a directory" in (reports[0].error or "")
    assert "too long" in (reports[1].error or "")
    assert files(tmp_path / "out") == set()


def test_a_file_of_another_format_than_its_name_gets_the_right_name(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png").rename(tmp_path / "a.jpg")
    (report,) = done(plan([source], tmp_path / "out", Naming()))
    assert report.target == tmp_path / "out" / "a_x4.png"
    assert "in truth PNG" in report.warnings[0]


def test_a_changed_name_never_takes_the_place_of_another(tmp_path: Path) -> None:
    wrong = picture(tmp_path / "a.png", width=7).rename(tmp_path / "a.jpg")
    right = picture(tmp_path / "a.png")
    reports = done(plan([wrong, right], tmp_path / "out", Naming()))
    assert [report.status for report in reports] == ["failed", "written"]
    assert "belongs to another" in (reports[0].error or "")
    assert decode(tmp_path / "out" / "a_x4.png").width == 24
    second = picture(tmp_path / "b.png").rename(tmp_path / "b.webp")
    third = picture(tmp_path / "b.png").rename(tmp_path / "b.jpg")
    reports = done(plan([second, third], tmp_path / "out", Naming()))
    # Both are PNG in truth: the one that is decoded first takes the name, and two are decoded at a time.
    assert sorted(report.status for report in reports) == ["failed", "written"]
    assert sum("belongs to another" in (report.error or "") for report in reports) == 1


def test_transparency_and_a_format_without_it(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png", alpha=np.full((5, 6), 9, np.uint8))
    seen: list[float] = []
    # Asked for: refused, not replaced, and before the work.
    (report,) = done(plan([source], None, Naming(), format="jpg"), progress=seen.append)
    assert report.status == "failed"
    assert seen == []
    assert "transparency" in (report.error or "")
    assert files(tmp_path) == {"a.png"}


def test_results_too_large_for_their_format_become_png(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.webp", width=4100, height=1)
    (report,) = done(plan([source], None, Naming()))
    assert report.target == tmp_path / "a_x4.png"
    assert "16383" in report.warnings[0]


def test_warnings_of_reading_are_reported(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "MPO", save_all=True, append_images=frames[1:])
    source = tmp_path / "a.jpg"
    source.write_bytes(buffer.getvalue())
    (report,) = done(plan([source], None, Naming()))
    assert report.status == "written"
    assert "first picture" in report.warnings[0]


def test_options_reach_the_result(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    source = tmp_path / "a.jpg"
    source.write_bytes(encode(Picture(noise), "jpg"))
    planned = plan([source], None, Naming("x2"))
    (fine,) = done(planned, request=Request(2), overwrite=True)
    assert fine.size == (80, 80)
    assert fine.target is not None
    before = fine.target.stat().st_size
    done(planned, request=Request(2), quality=10, overwrite=True)
    assert fine.target.stat().st_size < before / 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems restrict names")
def test_any_file_name_works(tmp_path: Path) -> None:
    odd = [
        "new\nline.png",
        "\x1b[31mred.png",
        "-rf.png",
        "$(touch x).png",
        "a b.png",
        "\u202egnp.png",
        "\udcff.png",
    ]
    odd += ["é.png", "e\u0301.png", "日本語.png", "x" * 248 + ".png", "..png.png", "a..png"]
    for name in odd:
        picture(tmp_path / "in" / "a.jpg").rename(tmp_path / "in" / name)
    reports = done(plan([tmp_path / "in"], tmp_path / "out", Naming()))
    visible = [name for name in odd if not name.startswith(".")]
    assert [report.status for report in reports] == ["written"] * len(visible)
