"""`make bench`: the page from figures alone, the run that measures them, and what the README repeats of it."""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import bench
import gpu
import machine
import measuring
import memory_and_size
import numpy as np
import plain_folder
import pytest
import results_page
import speed_engine
import speed_folder
import tile_overhead
import torch
from PIL import Image

from srgan import Upscaler
from srgan.engines.openvino import precisions
from srgan.pictures import Picture

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"

MACHINE = {
    "processor": "Some processor",
    "cores": 2,
    "flags": ["avx2"],
    "memory_gb": 16,
    "system": "Linux",
    "versions": {"Python": "3.11.0", "torch": "2.15.0"},
}


def runs(*wall: float) -> list[dict[str, float]]:
    return [{"wall": one, "cpu": 2 * one, "peak_bytes": 2e8} for one in wall]


FIGURES: dict[str, Any] = {
    "engine": {
        "threads": 2,
        "cpu_time": False,
        "sizes": [
            {
                "size_lr_px": 250,
                "operations": 3e11,
                "contenders": {
                    "OpenVINO": {"difference": 0.0, "seconds": [1.0, 2.0, 1.0]},
                    "PyTorch": {"difference": 1e-6, "seconds": [2.5, 4.4, 2.4]},
                    "ncnn": {"missing": "ImportError: No module named 'ncnn'"},
                },
                "product_operations": 1e10,
                "products": {"one": [0.1, 0.1, 0.3], "other": [0.02, 0.02, 0.03]},
            }
        ],
    },
    "folder": {
        "cases": [
            {
                "name": "8 PNG",
                "pictures": 8,
                "megapixels_out": 2.0,
                "runs": {"srgan upscale": runs(2.0, 4.0, 2.0), "plain script": runs(6.0, 8.0, 5.0)},
            }
        ]
    },
    "batch": {
        "pictures": 30,
        "size": "120x90",
        "workers": 2,
        "turns": [
            {"inference": 1.0, "job": 1.125},
            {"inference": 2.0, "job": 2.5},
            {"inference": 1.0, "job": 1.0},
        ],
    },
    "memory": {
        "reference": "500x500",
        "ours": [
            {"size": "500x500", "megapixels": 4.0, "wall": 0.5, "cpu": 1.0, "peak": 1.5e9},
            {"size": "4000x3000", "megapixels": 192.0, "wall": 0.45, "cpu": 1.0, "peak": 1.2e9},
        ],
        "plain": [
            {"size": "500x500", "megapixels": 4.0, "wall": 1.5, "cpu": 3.0, "peak": 4e9},
            {"size": "4000x3000", "missing": "not tried: it would need about 192 GB"},
        ],
    },
    "tiles": {
        "side_lr_px": 384,
        "whole_seconds": [1.0, 2.0],
        "rows": [
            {"halo": 10, "tile": 48, "pixels_run": 1.9, "difference": 12.5, "seconds": [2.0, 4.0]},
            {"halo": 10, "tile": 96, "pixels_run": 1.4, "difference": 11.0, "seconds": [1.5, 3.0]},
            {"halo": 40, "tile": 96, "pixels_run": 2.6, "difference": 0.0001, "seconds": [2.5, 5.5]},
            {"halo": None, "tile": None, "pixels_run": 1.1, "difference": 0.0, "seconds": [1.25, 2.5]},
        ],
    },
    "training": {
        "recipe": "some",
        "precision": "bf16-mixed",
        "stages": {
            "pretrain": {
                "patches": 8,
                "loops": {"ours": [0.5, 1.0, 0.5], "plain, 0 workers": [0.8, 1.8, 0.9]},
                "drawing": [0.01, 0.01, 0.02],
            },
            "adversarial": {"missing": "VGG's weights are not here"},
        },
    },
    "load": {
        "seconds": 60.0,
        "ratio": 0.953,
        "engine_lr_px_per_s": 91000,
        "service_lr_px_per_s": 86700,
        "statuses": {"200": 310, "429": 4},
        "wrong": 0,
        "latency_s": {"p50": 10.1, "p99": 12.2, "max": 13.3},
        "health_s": {"p50": 0.002, "p99": 0.02, "max": 0.04, "count": 500},
        "resident_mib": {"highest": 812, "curve": [[0.0, 700], [1.0, 800], [2.0, 812]], "bytes_per_request": 3},
    },
}


def record(figures: Any, **changes: Any) -> dict[str, Any]:
    whole = {
        "part": "some",
        "command": "python benchmarks/some.py",
        "date": "2026-01-02 03:04 UTC",
        "machine": MACHINE,
        "load_average": 0.5,
        "seconds": 12.3,
        "others_busy_cores": 0.02,
        "figures": figures,
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


@pytest.fixture
def records() -> dict[str, Any]:
    return {name: record(copy.deepcopy(figures)) for name, figures in FIGURES.items()}


def row(page: str, *cells: str) -> str:
    """The one row of a table in `page` that begins with these cells."""
    rows = [line for line in page.splitlines() if line.startswith("| " + " | ".join(cells) + " |")]
    assert len(rows) == 1, rows
    return rows[0]


def test_ratios_are_those_of_the_turns(records: dict[str, Any]) -> None:
    page, _ = results_page.render(records)
    # Of the medians it would be 2.50; the turns' own ratios are 2.5, 2.2 and 2.4.
    assert row(page, "PyTorch").endswith("| 2.500 (2.400–4.400) | 2.50 | 120, 24% | 2.40 (2.20–2.50) |")
    assert row(page, "OpenVINO").endswith("| 1.000 (1.000–2.000) | 1.00 | 300, 60% |  |")
    assert row(page, "8 PNG", "plain script").endswith(
        "| 6.00 (5.00–8.00) | 1.33 | 12.0 | 200 | 2.50 (2.00–3.00) |"
    )
    assert "| 1.125 (1.000–1.250) | 8.89 |" in page
    assert row(page, "4000x3000", "srgan").endswith("| 192.0 | 0.45 | 1.00 | 0.90 | 1.20 |")
    assert row(page, "tile 96, halo 40").endswith("| 2.60 | 2.62 (2.50–2.75) | 0.000 |")
    assert row(page, "pretrain", "plain, 0 workers").endswith("| 8.89 | 1.80 (1.60–1.80) |")
    assert row(page, "pretrain", "drawing and degrading a batch").endswith("| 2.0% of our step |  |")
    assert "| throughput over that of the engine alone | 0.953 |" in page
    assert "| answers | 310 × 200, 4 × 429 |" in page


def test_what_could_not_be_had_is_named_with_its_reason(records: dict[str, Any]) -> None:
    page, _ = results_page.render(records)
    assert "| ncnn | not measured: ImportError: No module named 'ncnn' |" in page
    assert "| 4000x3000 | PyTorch, whole picture | not measured: not tried: it would need about 192 GB |" in page
    assert "| adversarial | not measured: VGG's weights are not here |" in page


def test_a_missing_part_leaves_the_others(records: dict[str, Any]) -> None:
    whole, drawn = results_page.render(records)
    del records["training"]
    records["load"] = record(None, failed="exit code 1: nobody answers | at all")
    page, plots_left = results_page.render(records)
    assert "## Training\n\nNot measured: this part has not been run yet." in page
    assert "## Service under load\n\nNot measured: exit code 1: nobody answers | at all." in page
    assert set(drawn) - set(plots_left) == {"training.svg", "load.svg"}
    assert row(page, "PyTorch") == row(whole, "PyTorch")
    nothing, no_plots = results_page.render({})
    assert nothing.count("Not measured: this part has not been run yet.") == len(results_page.SECTIONS)
    assert not no_plots


def test_other_precisions_have_rows_of_their_own(records: dict[str, Any]) -> None:
    memory, load = records["memory"]["figures"], records["load"]["figures"]
    memory["fp32"] = [copy.deepcopy(memory["ours"][0]) | {"wall": 77.25}]
    load["others"] = {"fp32": copy.deepcopy(load) | {"ratio": 0.875}}
    page, _ = results_page.render(records)
    assert re.search(r"\| srgan, fp32 \|.*77\.25", page)
    assert "| in fp32: throughput over that of the engine alone | 0.875 |" in page


def test_every_stage_and_contender_may_be_missing(records: dict[str, Any]) -> None:
    records["training"]["figures"]["stages"] = {"pretrain": {"missing": "no"}}
    contenders = records["engine"]["figures"]["sizes"][0]["contenders"]
    contenders["PyTorch"] = {"missing": "no"}
    records["memory"]["figures"]["plain"] = []
    records["tiles"]["figures"]["rows"] = records["tiles"]["figures"]["rows"][:1]
    page, drawn = results_page.render(records)
    assert "training.svg" not in drawn
    assert "In float32 on" not in page


def test_a_machine_that_was_not_quiet_is_told(records: dict[str, Any]) -> None:
    records["engine"]["others_busy_cores"] = 0.5
    records["load"]["others_busy_cores"] = None
    page, _ = results_page.render(records)
    assert page.count("**Not quiet.** Other processes used 0.50 of 2 cores meanwhile; load average 0.5") == 1
    assert page.count("Other processes used 0.02 of 2 cores meanwhile; load average 0.5 at the start.") == 5
    assert "12 s. Load average 0.5 at the start." in page
    assert page.count("`python benchmarks/some.py`, 2026-01-02 03:04 UTC") == 7


def test_the_machine_is_told_once_or_for_each_part(records: dict[str, Any]) -> None:
    page, _ = results_page.render(records)
    assert page.count("Machine: Some processor, 2 cores (avx2), 16 GB of memory, Linux.") == 1
    records["load"]["machine"] = MACHINE | {"processor": "Another"}
    page, _ = results_page.render(records)
    assert page.count("Machine: Some processor") == 6
    assert page.count("Machine: Another") == 1


def test_plots_are_svg_that_stands_alone(records: dict[str, Any]) -> None:
    page, drawn = results_page.render(records)
    assert set(re.findall(r"\(plots/(.+?)\)", page)) == set(drawn)
    for name, content in drawn.items():
        tree = ET.fromstring(content)
        assert tree.tag == "{http://www.w3.org/2000/svg}svg", name
        assert "href" not in content, name
        assert "nan" not in content, name
        assert len(content) < 20_000, name
    ours, theirs = (float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', drawn["engine.svg"]))
    assert theirs / ours == pytest.approx(2.5, rel=0.01)  # bars are as long as the medians


# The page that is in the repository


def test_the_page_is_made_of_the_figures_beside_it() -> None:
    records = dict(bench.recorded(BENCHMARKS / "results"))
    page, drawn = results_page.render(records)
    assert (BENCHMARKS / "RESULTS.md").read_text() == page
    assert f"<!-- measured -->\n{results_page.in_short(records)}<!-- end -->" in (ROOT / "README.md").read_text()
    assert {path.name: path.read_text() for path in (BENCHMARKS / "plots").iterdir()} == drawn


def test_every_part_has_its_section_and_every_figure_its_part() -> None:
    assert [part.name for part in bench.PARTS] == list(results_page.SECTIONS)
    scripts = {part.name: part.script for part in bench.PARTS}
    for name, measured in bench.recorded(BENCHMARKS / "results"):
        assert "figures" in measured, name
        assert measured["command"].startswith(f"python benchmarks/{scripts[name]}")


# The run


SCRIPT = """\
import json, pathlib, sys, time
place = pathlib.Path(__file__).parent
with (place / "calls").open("a") as calls:
    calls.write(" ".join([pathlib.Path(__file__).stem, *sys.argv[1:-2]]) + "\\n")
if (place / f"{pathlib.Path(__file__).stem}.fails").exists():
    sys.exit("it cannot be had\\nnobody knows why")
if (place / f"{pathlib.Path(__file__).stem}.hangs").exists():
    time.sleep(60)
figures = json.loads((place / "figures.json").read_text())
pathlib.Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps(figures))
"""


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run bench.py over three scripts that give the figures of `batch`; `tmp_path` holds what they leave."""
    scripts = tmp_path / "benchmarks"
    scripts.mkdir()
    (scripts / "figures.json").write_text(json.dumps(FIGURES["batch"]))
    for name in ("one", "two", "three"):
        (scripts / f"{name}.py").write_text(SCRIPT)
    parts = [bench.Part(name, f"{name}.py", ("--size", "9"), ("--small",)) for name in ("one", "two", "three")]
    sections = {part.name: (part.name.title(), results_page.batch) for part in parts}
    monkeypatch.setattr(results_page, "SECTIONS", sections)
    monkeypatch.setattr(bench, "ROOT", tmp_path)

    def run(*arguments: str) -> int:
        (scripts / "calls").write_text("")
        return bench.main(["--out", str(tmp_path / "out"), *arguments], parts)

    return run


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "benchmarks" / "calls").read_text().splitlines()


def test_a_run_measures_every_part_and_the_next_one_again(measure: Callable[..., int], tmp_path: Path) -> None:
    assert measure() == 0
    assert calls(tmp_path) == ["one --size 9", "two --size 9", "three --size 9"]
    kept = json.loads((tmp_path / "out" / "results" / "two.json").read_text())
    assert kept["figures"] == FIGURES["batch"]
    assert kept["command"] == "python benchmarks/two.py --size 9"
    assert kept["machine"]["cores"] >= 1
    assert kept["others_busy_cores"] is None or kept["others_busy_cores"] >= 0
    page = (tmp_path / "out" / "RESULTS.md").read_text()
    assert page.count("1.125 (1.000–1.250)") >= 3
    assert measure() == 0
    assert len(calls(tmp_path)) == 3
    assert measure("--render") == 0
    assert not calls(tmp_path)
    assert measure("--quick", "two") == 0
    assert calls(tmp_path) == ["two --small"]


def test_a_part_that_fails_is_named_and_the_rest_goes_on(
    measure: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "benchmarks" / "two.fails").touch()
    (tmp_path / "benchmarks" / "three.hangs").touch()
    assert measure("--limit", "1.5") == 1
    page = (tmp_path / "out" / "RESULTS.md").read_text()
    assert "## Two\n\nNot measured: exit code 1: nobody knows why." in page
    assert "## Three\n\nNot measured: took longer than 1.5 s." in page
    assert "## One\n\n30 PNG of 120x90" in page
    assert "it cannot be had" in capfd.readouterr().err


def test_an_interrupted_run_goes_on(
    measure: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = bench.run

    def interrupted(command: list[str], *rest: Any) -> int | None:
        if "three" in command[1]:
            raise KeyboardInterrupt
        return original(command, *rest)

    monkeypatch.setattr(bench, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure()
    monkeypatch.setattr(bench, "run", original)
    assert measure("two") == 0  # a part by name is measured again, and the run is still unfinished
    assert measure() == 0
    assert calls(tmp_path) == ["three --size 9"]
    monkeypatch.setattr(bench, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure()
    monkeypatch.setattr(bench, "run", original)
    assert measure("--fresh") == 0
    assert len(calls(tmp_path)) == 3


def test_an_unknown_part_is_refused_in_words(
    measure: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        measure("four")
    assert refused.value.code == 2
    assert "no such part: four; there are one, two, three" in capsys.readouterr().err


def test_nothing_of_a_script_stays_when_it_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    child = "import os, time, pathlib; pathlib.Path('child').write_text(str(os.getpid())); time.sleep(60)"
    script.write_text(f"import os, subprocess, sys\nos.chdir({str(tmp_path)!r})\n")
    script.write_text(script.read_text() + f"subprocess.run([sys.executable, '-c', {child!r}])\n")
    assert bench.run([sys.executable, str(script)], tmp_path / "said", 1.5) is None
    process = int((tmp_path / "child").read_text())
    end = time.monotonic() + 5
    while _runs(process) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(process)


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# What the scripts share


def test_the_work_of_others_is_what_this_process_has_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "busy_s", iter([10.0, 13.0, 13.0]).__next__)
    monkeypatch.setattr(machine, "used_s", iter([1.0, 2.0, 1001.0]).__next__)
    monkeypatch.setattr(machine, "monotonic", iter([100.0, 101.0, 101.0]).__next__)
    others = machine.OtherWork()
    assert others.cores() == 2.0  # three seconds of work in one, of which this process did one
    assert others.cores() == 0.0


def test_contenders_take_turns() -> None:
    order: list[str] = []

    def contender(name: str) -> Callable[[], int]:
        def turn() -> int:
            order.append(name)
            return len(order)

        return turn

    assert measuring.in_turns({"a": contender("a"), "b": contender("b")}, 3) == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert order == ["a", "b"] * 3


def test_sample_pictures_have_the_sizes_asked_for_and_differ(tmp_path: Path) -> None:
    folder = measuring.photographs(tmp_path / "in", [(30, 20), (31, 20), (30, 20), (30, 20)], "png")
    pictures = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]
    assert [picture.size for picture in pictures] == [(30, 20), (31, 20), (30, 20), (30, 20)]
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_the_plain_script_makes_the_same_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = measuring.photographs(tmp_path / "in", [(24, 18), (19, 23)], "png")
    monkeypatch.setattr(sys, "argv", ["plain_folder.py", str(folder), str(tmp_path / "out")])
    plain_folder.main()
    upscaler = Upscaler("srgan-x4", precision="fp32", faithful=False)
    for path in sorted(folder.iterdir()):
        ours = upscaler.upscale(Picture(np.array(Image.open(path)))).pixels
        plain = np.array(Image.open(tmp_path / "out" / path.name)).astype(int)
        assert np.abs(plain - ours).max() <= 1
        assert (plain != ours).mean() < 0.01


def test_a_process_is_measured_whole() -> None:
    # From a small process: the system counts what a process was before it became another program.
    work = "b = b'x' * 200_000_000; sum(range(3_000_000))"
    measuring_it = (
        f"import json, speed_folder, sys; print(json.dumps(speed_folder.run([sys.executable, '-c', {work!r}])))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(BENCHMARKS)])}
    command = [sys.executable, "-c", measuring_it]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)
    assert found["cpu"] > 0.01
    assert found["cpu"] < 8 * found["wall"]
    assert 2e8 < found["peak_bytes"] < 3e8
    with pytest.raises(SystemExit, match="exit code 3"):
        speed_folder.run([sys.executable, "-c", "import sys; sys.exit(3)"])


def test_a_script_that_leaves_out_pictures_is_no_contender(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = measuring.photographs(tmp_path / "in", [(24, 18)], "png")
    monkeypatch.setattr(speed_folder, "run", lambda command: {"wall": 1.0, "cpu": 1.0, "peak_bytes": 1.0})
    with pytest.raises(SystemExit, match="wrote 0 of 1 pictures"):
        speed_folder.measure("some", folder, [(24, 18)], 1, alone=False)


def test_a_size_that_memory_cannot_hold_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_and_size, "available_bytes", lambda: 10_000_000_000)
    before: list[dict[str, Any]] = [
        {"size": "100x100", "megapixels": 0.16, "peak": 100_000_000},
        {"size": "9x9", "missing": "no"},
    ]
    assert memory_and_size.too_large("800x800", before) is None  # 6.4 GB
    row = memory_and_size.too_large("1000x1000", before)
    assert row == {"size": "1000x1000", "missing": "not tried: it would need about 10 GB"}
    assert memory_and_size.too_large("1000x1000", []) is None


def test_tiles_are_off_unless_their_halo_is_the_models_reach(tiny_model: Path) -> None:
    options = argparse.Namespace(side=60, halos=[2, 12], tiles=[18], rounds=2, model=tiny_model)
    found = tile_overhead.measure(options)
    narrow, wide, strips = found["rows"]
    assert narrow["difference"] > 0.1
    assert wide["difference"] < 0.01
    assert strips["difference"] < 0.01
    # Two tiles each way: 60 pixels are two cores of 18 with a halo outside, each reading 12 more inside.
    assert wide["pixels_run"] == pytest.approx((2 * (18 + 2 * 12)) ** 2 / 60**2)
    assert [len(row["seconds"]) for row in found["rows"]] == [2, 2, 2]


def test_a_contender_that_dies_or_is_wrong_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(of: BaseException | float) -> Callable[..., Future[float]]:
        def submit(*_: Any) -> Future[float]:
            future: Future[float] = Future()
            future.set_exception(of) if isinstance(of, BaseException) else future.set_result(of)
            return future

        return submit

    worker = speed_engine.Worker("ncnn", 5_000_000_000)
    for of, reason in (
        (BrokenProcessPool(), "its process died; it had 5 GB of memory, half of what is free"),
        (ImportError("No module named 'ncnn'"), "ImportError: No module named 'ncnn'"),
        (0.02, "its result differs by 0.02 of the range"),
    ):
        monkeypatch.setattr(worker._pool, "submit", outcome(of))
        with pytest.raises(speed_engine.BenchmarkError, match=re.escape(reason)):
            worker.build(8, 1)
    monkeypatch.setattr(worker._pool, "submit", outcome(1e-6))
    assert worker.build(8, 1) == 1e-6
    worker.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_run_of_the_engine_measures_it(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "bench.py"), "--quick", "engine", "--out", str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    found = json.loads((tmp_path / "results" / "engine.json").read_text())["figures"]["sizes"][0]["contenders"]
    assert "left out" in found["ncnn"]["missing"]
    measured = [name for name, one in found.items() if "seconds" in one]
    assert len(measured) == 6 + ("bf16" in precisions()), found
    assert all(len(found[name]["seconds"]) == 2 for name in measured)
    assert "not measured: left out by --without" in (tmp_path / "RESULTS.md").read_text()


# What a graphics card is asked


def rehearsed(path: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(path.read_text())
    parts = [name for name, rows in figures.items() if isinstance(rows, dict)]
    assert parts == ["device", "products", "network", "parity", "forms", "upscaling", "operators", "training"]
    missing = {name: row for part in parts[1:] for name, row in figures[part].items() if "missing" in str(row)}
    assert not missing
    return figures


def test_what_a_card_is_asked_is_rehearsed_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SRGAN_BACKBONES", str(tmp_path))  # the recipe of a rehearsal needs none
    gpu.main(["--device", "cpu", "--quick", "--json", str(tmp_path / "gpu.json")])
    figures = rehearsed(tmp_path / "gpu.json")
    # By hand, twice the weights of every convolution at its size: 9×9 from and to 3 channels, 33 of 3×3 with 64,
    # two from 64 to 256, and the bicubic of 25 taps from 3 channels to 48, most of them zeros.
    taps = 3 * 64 * 81 + 33 * 64 * 64 * 9 + 64 * 256 * 9 * (1 + 4) + 64 * 3 * 81 * 16 + 3 * 48 * 25
    assert figures["network"]["operations_per_lr_px"] == pytest.approx(2 * taps, rel=0.02)
    assert figures["parity"]["fp32"]["most_levels"] < 0.01 < figures["parity"]["fp16"]["most_levels"] < 1
    assert len(figures["forms"]) == 6
    ours = {name for name in figures["upscaling"] if name.startswith("ours")}
    assert ours == {f"ours, {kind}, {size}" for kind in ("fp16", "bf16", "fp32") for size in ("16x16", "24x32")}
    assert {name.partition(":")[0] for name in figures["training"]} == {"pretrain", "adversarial"}
    for stage in ("pretrain: ", "adversarial: "):
        shares = [row["share"] for name, row in figures["operators"].items() if name.startswith(stage)]
        assert shares == sorted(shares, reverse=True)
        assert len(shares) == 20
    printed = capsys.readouterr().out
    for name in [*figures["upscaling"], *figures["training"]]:
        assert f"| {name} |" in printed


def test_what_a_card_cannot_do_is_named_with_its_reason(tmp_path: Path) -> None:
    def measure() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried")

    assert gpu.Card("cpu", limit_s=0).attempt(measure) == {"missing": "TimeoutError: no time was left"}
    assert gpu.Card("cpu", limit_s=100).attempt(measure) == {"missing": "OutOfMemoryError: CUDA out of memory."}
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="rehearsal"):
            gpu.main(["--json", str(tmp_path / "gpu.json")])


@pytest.mark.slow
def test_a_card_is_measured_where_openvino_is_not_installed(tmp_path: Path) -> None:
    arguments = ["gpu.py", "--device", "cpu", "--quick", "--json", str(tmp_path / "gpu.json")]
    without = f"import sys; sys.modules['openvino'] = None; sys.argv = {arguments}; import gpu; gpu.main()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(BENCHMARKS)])}
    subprocess.run([sys.executable, "-c", without], check=True, capture_output=True, env=environment)
    rehearsed(tmp_path / "gpu.json")
