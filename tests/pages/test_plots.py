"""Plots that stand alone: what is drawn is where its value belongs, and the file needs nothing from outside."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from srgan.pages import plots
from srgan.pages.plots import Dots, Lines

SVG = "{http://www.w3.org/2000/svg}"


def elements(drawing: str, tag: str, kind: str) -> list[ET.Element]:
    """Elements of a class, in the order of the file, which must be well-formed."""
    tree = ET.fromstring(drawing)
    return [element for element in tree.iter(SVG + tag) if kind in element.get("class", "").split()]


def numbers(text: str | None) -> list[float]:
    return [float(number) for number in re.findall(r"-?[\d.]+", text or "")]


def test_bars_are_as_long_as_their_values() -> None:
    drawing = plots.bars("t", [("a", 1.0, "one"), ("b", 2.5, "more"), ("c", 0.0, "none")], ours=["b"])
    drawn = elements(drawing, "rect", "bar")
    widths = [float(bar.get("width", "")) for bar in drawn]
    assert widths[1] / widths[0] == pytest.approx(2.5, rel=1e-3)
    assert widths[2] == 0
    assert [bar.get("class") for bar in drawn] == ["bar", "bar ours", "bar"]
    assert drawing.endswith("</svg>\n")


def test_logarithmic_curves_keep_equal_steps_for_equal_factors() -> None:
    drawing = plots.curves("t", {"a": [(1, 1), (10, 10), (100, 100)]}, x_name="x", y_name="y", log=True)
    path = re.search(r'd="(M[\d. ]+L[\d. ]+L[\d. ]+)"', drawing)
    assert path
    points = np.array([[float(number) for number in point.split()] for point in re.split("[ML]", path[1])[1:]])
    steps = np.diff(points, axis=0)
    np.testing.assert_allclose(steps[0], steps[1], atol=0.2)
    assert steps[0][0] > 0 > steps[0][1]  # to the right and up


def a_sheet(reference: float = math.nan) -> str:
    lines = {"first": [(0, 1.0), (10, 2.0), (20, 1.5)], "second": [(0, 3.0), (20, math.nan)]}
    rows = {"first": [1.0, 2.0, 6.0], "second": [4.0, math.nan]}
    return plots.sheet(
        "A <sheet>",
        [Lines("plain", lines), Lines("factors", lines, log=True)],
        [Dots("left", rows, reference), Dots("right", rows)],
        x_name="step",
    )


def test_a_sheet_marks_means_among_the_dots() -> None:
    drawing = a_sheet()
    groups = elements(drawing, "g", "curve")
    marks = [numbers(mark[1].get("d"))[0] for mark in groups if "mark" in mark.get("class", "")]
    rows = [dots for dots in groups if dots[0].get("class") == "dots" and not dots[1].get("d")]
    assert len(marks) == len(rows) == 4  # of two rows in two panels
    first, second = (numbers((row[0].get("d") or "").replace("h0", ""))[::2] for row in rows[:2])
    assert len(first) == 3
    assert marks[0] == pytest.approx(np.mean(first), abs=0.1)
    assert second == pytest.approx([marks[1]])  # what is not finite is left out
    assert first[0] < first[1] < second[0] < first[2]


def test_a_single_step_stands_in_the_middle() -> None:
    drawing = plots.sheet("t", [Lines("one", {"a": [(5, 1.0)]})], [Dots("d", {"a": [1.0]})], x_name="step")
    dots = elements(drawing, "path", "dots")[0]
    x, y, _ = numbers(dots.get("d"))
    assert (x, y) == pytest.approx(((46 + 1088) / 2, 190), abs=4)


def test_a_reference_goes_through_all_rows() -> None:
    assert not elements(a_sheet(), "line", "guide")
    (guide,) = elements(a_sheet(reference=5.0), "line", "guide")
    assert guide.get("x1") == guide.get("x2")
    assert float(guide.get("y2", "")) - float(guide.get("y1", "")) > 40


def test_names_are_text_and_nothing_comes_from_outside() -> None:
    for drawing in (a_sheet(), plots.bars("<evil>", [("<evil>", 0.0, "<evil>")])):
        assert "<evil>" not in drawing
        assert "<sheet>" not in drawing
        assert ET.fromstring(drawing).tag == f"{SVG}svg"
        assert "href" not in drawing
        assert "nan" not in drawing
