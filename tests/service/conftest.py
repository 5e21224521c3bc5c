"""What all tests of the page begin with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from support.browser import chromium  # skips where there is no Playwright

    with chromium() as running:
        yield running


@pytest.fixture
def red(page: Any) -> Any:
    """The page of the module with a red picture and its cyan negative."""
    from support.browser import RED, give, plain, wait_until_done

    give(page, ("red.png", plain(*RED)))
    wait_until_done(page)
    return page
