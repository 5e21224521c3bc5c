"""Where no model is named, each picture gets the bundled one that suits it, at every front end."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from srgan_service.work.models import ServedModel
from support.engines import METADATA, NearestEngine
from support.serving import ended, serving

from srgan.pictures import decode
from srgan.upscale import Upscaler
from srgan.weights import LossyRule, bundled_models, lossy_rule

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
RULE = LossyRule("for lossy", "", 90, ("webp",))


def srgan(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "srgan", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def saved(format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format, **options)
    return buffer.getvalue()


FRAMES = {"save_all": True, "append_images": [Image.fromarray(PIXELS[::-1])], "duration": 40}


@pytest.mark.parametrize(
    ("content", "quality"),
    [
        *((saved("JPEG", quality=quality), quality) for quality in (30, 75, 90, 95)),
        (saved("PNG"), None),
        (saved("TIFF"), None),
        (saved("GIF"), None),
        (saved("WEBP", quality=80), 0),
        (saved("WEBP", quality=80, **FRAMES), 0),
        (saved("WEBP", lossless=True), None),
        (saved("WEBP", lossless=True, **FRAMES), None),
        (saved("WEBP", lossless=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"), None),
        (saved("AVIF", quality=60), 0),
    ],
)
def test_a_picture_tells_how_lossy_its_file_was(content: bytes, quality: int | None) -> None:
    assert decode(content).lossy_quality == quality


@pytest.mark.parametrize(
    ("format", "quality", "expected"),
    [("jpg", 89, True), ("jpg", 90, False), ("png", None, False), ("webp", 0, True), ("webp", None, False)],
)
def test_the_rule_takes_what_it_says(format: str, quality: int | None, expected: bool) -> None:
    assert RULE.takes(format, quality) is expected


def test_the_bundled_rule_names_a_bundled_model_of_the_same_scale() -> None:
    rule, models = lossy_rule(), {model.name: model for model in bundled_models()}
    assert rule is not None
    assert models[rule.model].scale == next(model.scale for model in models.values() if model.is_default)


def test_a_folder_without_a_named_model_says_which_took_each_file(tmp_path: Path) -> None:
    """The results are those of the models by their names, to the byte."""
    rule = lossy_rule()
    assert rule is not None
    (default,) = (model.name for model in bundled_models() if model.is_default)
    files = {"clean.png": default, "web.jpg": rule.model, "good.jpg": default}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "clean.png").write_bytes(saved("PNG"))
    (tmp_path / "in" / "web.jpg").write_bytes(saved("JPEG", quality=40))
    (tmp_path / "in" / "good.jpg").write_bytes(saved("JPEG", quality=100))
    report = tmp_path / "report.json"
    for out, named in (("out", []), *((name, ["-n", name]) for name in {default, rule.model})):
        done = srgan("upscale", tmp_path / "in", "-o", tmp_path / out, "--json", report, *named)
        assert (done.returncode, done.stderr) == (0, "")
        facts = json.loads(report.read_text())
        told = {Path(file["source"]).name: file["model"] for file in facts["files"]}
        assert (facts["model"], told) == (
            ("auto", files) if not named else (named[1], dict.fromkeys(files, named[1]))
        )
    for file, model in files.items():
        name = f"{file.partition('.')[0]}_x4.{file.partition('.')[2]}"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / model / name).read_bytes()


def test_a_result_by_the_suiting_model_is_known_again_and_not_that_of_a_named_one(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(saved("JPEG", quality=40))
    rule = lossy_rule()
    assert rule is not None
    asked: list[str | Path] = ["upscale", tmp_path / "a.jpg", "-o", tmp_path / "out"]
    assert srgan(*asked).stdout.rstrip().endswith(rule.model)
    assert "1 skipped" in srgan(*asked).stdout
    assert srgan(*asked, "-n", "srresnet-x4").returncode == 1


def test_arrays_say_nothing_of_a_file_and_go_to_the_default() -> None:
    jpeg = saved("JPEG", quality=40)
    pixels = decode(jpeg).pixels
    rule = lossy_rule()
    assert rule is not None
    upscaler = Upscaler()
    assert upscaler.name == "auto"
    assert (upscaler.upscale(pixels) == Upscaler("srgan-x4").upscale(pixels)).all()
    assert (upscaler.upscale(jpeg).pixels == Upscaler(rule.model).upscale(pixels)).all()


def test_requests_and_jobs_are_taken_by_the_model_that_suits_them(tmp_path: Path) -> None:
    models_by_name = {name: NearestEngine(replace(METADATA, name=name)) for name in ("default", RULE.model)}
    models = {
        ServedModel(name, "", METADATA.scale, is_default=name == "default"): Upscaler(engine=engine)
        for name, engine in models_by_name.items()
    }
    with serving(jobs=True, data_dir=str(tmp_path), job_poll_s=0.05) as running:
        running.service.models.serve_only(models, lossy=RULE)
        for content, query, expected in (
            (saved("PNG"), "", "default"),
            (saved("JPEG", quality=40), "", RULE.model),
            (saved("JPEG", quality=95), "", "default"),
            (saved("JPEG", quality=40), "?model=default", "default"),
            (saved("WEBP"), "", RULE.model),
        ):
            answer = running.client.post(f"/v1/upscale{query}", content=content)
            assert answer.headers["X-Model"].replace("%20", " ") == expected
        accepted = running.client.post("/v1/jobs", files={"image": ("b.jpg", saved("JPEG", quality=40))})
        assert ended(running, accepted.headers["location"])["status"] == "completed"
    assert len(models_by_name[RULE.model].calls) == 3
