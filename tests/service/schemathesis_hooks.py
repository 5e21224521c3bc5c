"""What no schema can say, for schemathesis: which bytes are a picture, and that one size excludes another.

Named in SCHEMATHESIS_HOOKS by the test that runs it. Only requests that are meant to be good are changed.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, HookContext
from schemathesis.generation import GenerationMode
from srgan_service.work.upscaling import MEDIA_TYPES
from support.serving import levels

from srgan.pictures import Picture, encode

SIZES = ("scale", "long_side", "width", "height")
# Small enough for any scale, large enough to be reduced to any side.
FILES = {format: [encode(Picture(levels(7, 9, seed)), format) for seed in range(3)] for format in MEDIA_TYPES}

for format, media_type in MEDIA_TYPES.items():
    schemathesis.openapi.media_type(media_type, st.sampled_from(FILES[format]))
schemathesis.openapi.format("binary", st.sampled_from([content for files in FILES.values() for content in files]))


def is_meant_well(case: Case[Any]) -> bool:
    return case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE


@schemathesis.hook
def map_case(context: HookContext, case: Case[Any]) -> Case[Any]:
    """Leave one size, at most 16 times the picture's, and say nothing twice."""
    if not is_meant_well(case) or case.operation.label not in ("POST /v1/upscale", "POST /v1/jobs"):
        return case
    query: dict[str, Any] = case.query if isinstance(case.query, dict) else {}
    form: dict[str, Any] = case.body if isinstance(case.body, dict) else {}
    for name in set(query) & set(form):
        del form[name]
    sizes = [(part, name) for part in (query, form) for name in SIZES if name in part]
    for part, name in sizes[1:]:
        del part[name]
    for part, name in sizes[:1]:
        if name != "scale" and isinstance(part[name], int):
            part[name] = min(part[name], 7 * 16)
    return case
