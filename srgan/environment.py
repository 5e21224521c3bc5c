"""The variables of the environment that are read, by their names: a misspelt one would do nothing, in silence."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

from srgan.errors import UsageError

PREFIX = "SRGAN_"

# The fields of `srgan_service.settings.Settings`, which is not imported for its names: it may not be installed.
_FIELDS = """
    HOST PORT INSECURE ALLOWED_HOSTS CORS_ORIGINS MODEL MEMORY_BYTES TILE_LR_PX DEVICE PRECISION BATCH_TILES
    LIMIT_BYTES LIMIT_MEGAPIXELS LIMIT_SIDE_PX LIMIT_FRAMES LIMIT_OUTPUT_MEGAPIXELS QUEUE_REQUESTS QUEUE_MEGAPIXELS
    QUEUE_BYTES KEY_SHARE SMALL_MEGAPIXELS SMALL_AT_ONCE LARGE_AT_ONCE DEADLINE_S HEADER_TIMEOUT_S BODY_TIMEOUT_S
    BODY_BYTES_PER_S WRITE_TIMEOUT_S GRACE_S CONNECTIONS LIMIT_HEADER_BYTES KEYS KEYS_FILE DATABASE_URL
    DATABASE_TIMEOUT_S DATA_DIR JOBS JOBS_AT_ONCE JOB_FILES JOB_BYTES JOB_QUEUE KEY_JOBS KEY_JOB_BYTES JOB_WATCHERS
    JOB_EXPIRY_S JOB_POLL_S LEASE_S LOG_LEVEL
"""
OF_SERVICE = _FIELDS.split()
OF_EVALUATION = ["BACKBONES"]
OF_TESTS = ["SHARED", "CHROMIUM", "SCREENSHOTS", "RUNTIME"]

_NAMES = (*OF_SERVICE, *OF_EVALUATION, *OF_TESTS)
KNOWN = tuple(PREFIX + name for name in _NAMES)


def refuse_misspelt(environment: Iterable[str] | None = None) -> None:
    """Raise UsageError if a variable's name begins like a setting, in letters of either case, and is none.

    `environment`: the names, by default those of this process.
    """
    for name in os.environ if environment is None else environment:
        spelt = name.upper()
        if spelt.startswith(PREFIX) and spelt not in KNOWN:
            near = difflib.get_close_matches(spelt.removeprefix(PREFIX), _NAMES, n=1)
            remedy = f"did you mean {PREFIX}{near[0]}?" if near else "docs/deployment.md lists them; unset it"
            raise UsageError(f"{spelt} is no setting: {remedy}")
