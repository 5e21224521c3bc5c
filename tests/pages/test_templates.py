"""What keeps the pages safe and light: autoescape in place of escaping by hand, and no torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup
from srgan_service.http import manual

from srgan.pages.charts import Series, line_chart
from srgan.pages.layout import render

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("srgan", "service") for path in sorted((ROOT / folder).rglob("*.py"))]
TEMPLATES = [path for folder in ("srgan", "service") for path in sorted((ROOT / folder).rglob("*.j2"))]


def test_nothing_is_escaped_or_declared_safe_by_hand() -> None:
    assert len(SOURCES) > 100
    by_hand = re.compile(r"^\s*(import html\b|from html import)|markupsafe\.escape|autoescape=False", re.MULTILINE)
    assert [path for path in SOURCES if by_hand.search(path.read_text())] == []
    assert len(TEMPLATES) > 5
    unescaped = re.compile(r"\|\s*safe\b|autoescape\s+false")
    assert [path for path in TEMPLATES if unescaped.search(path.read_text())] == []


def test_only_the_layout_makes_html_of_text() -> None:
    makers = {path.relative_to(ROOT).as_posix() for path in SOURCES if re.search(r"\bMarkup\(", path.read_text())}
    assert makers == {"srgan/pages/layout.py"}


def test_a_chart_is_html_and_its_texts_are_not() -> None:
    chart = line_chart("<b>title</b>", [Series("<key>", "<label>", [(1, 1.0), (2, 2.0)])])
    assert isinstance(chart, Markup)
    for name in ("b", "key", "label"):
        assert f"<{name}>" not in chart.replace("<b>2</b>", "")  # where the line ends
        assert f"&lt;{name}&gt;" in chart


def test_a_name_that_is_missing_fails_instead_of_showing_nothing() -> None:
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        render("chart.html.j2")


def test_the_pages_load_no_torch() -> None:
    modules = "srgan.pages.report, srgan.pages.compare, srgan.pages.gallery, srgan.evaluation.measures"
    program = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "jinja2" in loaded
    assert not loaded & {"torch", "torchvision", "lightning", "lpips", "skimage", "matplotlib"}


def test_the_manual_shows_markup_as_text_and_backticks_as_code() -> None:
    evil = "<script>alert(1)</script>"
    operation = {
        "operationId": f'"{evil}',
        "summary": evil,
        "description": f"Send `{evil}` or {evil}",
        "parameters": [{"name": evil, "in": evil, "description": evil, "schema": {"enum": [evil, 2]}}],
        "requestBody": {"content": {evil: {}}},
        "responses": {evil: {"description": evil}},
    }
    html = manual.page({"info": {"title": evil, "version": evil}, "paths": {evil: {"post": operation}}}, evil)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 15  # every place of the document, the id among them
    assert "Send <code>&lt;script&gt;alert(1)&lt;/script&gt;</code> or &lt;script&gt;" in html
