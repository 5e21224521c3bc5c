"""Write what of docs/ is made from something else: the page of commands and the contents of the decisions.

python tools/make_docs.py     (or `make docs`)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srgan.commands.cli import command

DOCS = Path(__file__).parents[1] / "docs"
WIDTH = 100  # columns of the help, whatever terminal this runs in

COMMANDS_HEAD = """\
# Commands

What `--help` says of each. Made by `make docs`; a test fails where it is not current.
"""


def help_texts(command: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the full name and the help of a command and of all that are below it.

    `command`: one of click's, which typer makes but does not name.
    """
    context = command.make_context(path, [], resilient_parsing=True, terminal_width=WIDTH, max_content_width=WIDTH)
    yield path, command.get_help(context)
    for name, below in getattr(command, "commands", {}).items():
        yield from help_texts(below, f"{path} {name}")


def commands_page() -> str:
    """Return docs/commands.md."""
    texts = help_texts(command(), "srgan")
    return "\n".join([COMMANDS_HEAD, *(f"## {path}\n\n```text\n{text}\n```\n" for path, text in texts)])


def anchor(heading: str) -> str:
    """Return what a heading is linked by, in the way of GitHub: `## The plan` by `#the-plan`."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def with_contents(text: str) -> str:
    """Return a page with the list between `<!-- contents -->` and `<!-- end -->` made anew from its headings."""
    head, _, rest = text.partition("<!-- contents -->\n")
    _, _, body = rest.partition("<!-- end -->\n")
    lines = [
        f"{'  ' * (len(level) - 2)}- [{heading}](#{anchor(heading)})"
        for level, heading in re.findall(r"^(###?) (.+)$", body, re.MULTILINE)
    ]
    return "\n".join([f"{head}<!-- contents -->", *lines, f"<!-- end -->\n{body}"])


def pages() -> dict[Path, str]:
    """Return each page that is made here, and its text as it should be."""
    decisions = DOCS / "decisions.md"
    return {
        DOCS / "commands.md": commands_page(),
        decisions: with_contents(decisions.read_text(encoding="utf-8")),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
