"""Log lines are one JSON object each; nothing that a client sends can break a line or drive a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from srgan.texts import one_line

# Whatever a client sent is cut to this, in characters; a whole line stays below 4 KB.
_MOST_CHARACTERS = 500
_MOST_TRACE_CHARACTERS = 2500

_SHARED = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
)


def configure(level: str = "INFO") -> None:
    """Send this process's logging, uvicorn's included, to standard error: as JSON lines, or for who looks on."""
    use_logging()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(for_person=sys.stderr.isatty()))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "dbos"):
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]  # DBOS gives its logger one of its own if there is none
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # every answer has a line of ours


def use_logging() -> None:
    """Make structlog's loggers those of `logging`, whoever handles that."""
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def formatter(*, for_person: bool = False) -> structlog.stdlib.ProcessorFormatter:
    """Return what turns records of `logging` into JSON lines, or into lines `for_person`."""
    # ASCII alone: line separators and marks of direction are escaped like all the rest.
    as_json = structlog.processors.JSONRenderer(ensure_ascii=True, default=str)
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=list(_SHARED),
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _shortened,
            _in_words if for_person else as_json,
        ],
    )


def _shortened(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in list(event.items()):
        if not isinstance(value, int | float | bool | None):
            text = str(value)
            if name == "exception":  # its end says most
                event[name] = text[-_MOST_TRACE_CHARACTERS:]
            else:
                event[name] = text[:_MOST_CHARACTERS]
    return event


def _in_words(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    """Return a line such as "09:30:12 answered  method GET, path /, status 200"."""
    at, level, name = (str(event.pop(key, "")) for key in ("timestamp", "level", "event"))
    trace = event.pop("exception", "")
    facts = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("request_id", "logger"))
    loud = f"{level} " if level not in ("info", "debug") else ""
    return "\n  ".join(one_line(text) for text in [f"{at[11:19]} {loud}{name}  {facts}", *str(trace).splitlines()])
