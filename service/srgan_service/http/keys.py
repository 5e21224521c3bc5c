"""API keys: only their hashes are kept, and comparing them tells nothing by its time."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from srgan.errors import UsageError
from srgan_service.http.problems import Problem
from srgan_service.settings import Settings

_LEAST_CHARACTERS = 22  # 128 bits in base64
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Holder:
    """Whose request it is. `name`: of the key, "" without keys. `share`: of the queue that it may take."""

    name: str
    share: float


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    share: float | None = Field(None, gt=0, le=1)


class Keys:
    """The keys that are accepted; none at all means that everybody is.

    Raises UsageError for keys that are too short to be secret, doubled names or a file that cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._holders: list[tuple[bytes, Holder]] = []
        entries = filter(None, (part.strip() for part in settings.keys.split(",")))
        for number, entry in enumerate(entries, 1):
            name, _, key = entry.partition(":")
            place = f"SRGAN_KEYS, entry {number}"
            self._add(place, name, _digest_of(place, key), settings.key_share)
        if settings.keys_file is not None:
            for number, (name, listed) in enumerate(_read(settings.keys_file).items(), 1):
                place = f"{settings.keys_file}, entry {number}"
                self._add(place, name, bytes.fromhex(listed.sha256), listed.share or settings.key_share)
        self._anybody = Holder("", 1.0)
        self.insecure = settings.insecure

    def __bool__(self) -> bool:
        """Return whether a key is needed."""
        return bool(self._holders)

    def holder(self, request: Request) -> Holder:
        """Return whose request it is. Raises Problem, the same for a missing, a wrong and an odd key."""
        if not self._holders:
            if self.insecure or not _came_from_outside(request):
                return self._anybody
            raise _unauthorized("this service has no API keys and serves its own machine only")
        presented = _presented(request)
        digest = hashlib.sha256(presented if presented is not None else b"").digest()
        match: Holder | None = None
        for stored, holder in self._holders:  # all of them, so that the time tells nothing
            if hmac.compare_digest(stored, digest):
                match = holder
        if match is None or presented is None:
            raise _unauthorized("send an API key as X-API-Key or as Authorization: Bearer")
        return match

    def _add(self, place: str, name: str, digest: bytes, share: float) -> None:
        """Add a key. Errors tell its `place`, not its name: where one is missing, that is the key."""
        if not _NAME.fullmatch(name):
            raise UsageError(f"{place}: an API key's name is letters, digits, dots, dashes; at most 64")
        if any(holder.name == name for _, holder in self._holders):
            raise UsageError(f"{place}: there is another API key of this name")
        self._holders.append((digest, Holder(name, share)))


def new_key() -> tuple[str, str]:
    """Return a fresh key of 256 bits and its sha256, which is all that the service needs."""
    key = secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address or name `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _came_from_outside(request: Request) -> bool:
    server = request.scope.get("server")
    # Without a port it is a Unix socket.
    return server is not None and server[1] is not None and not is_loopback(server[0])


def _presented(request: Request) -> bytes | None:
    """Return the one key that a request carries, or None for none, several or what cannot be one."""
    given = [value for name, value in request.headers.raw if name == b"x-api-key"]
    for name, value in request.headers.raw:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            given.append(token.strip() if scheme.lower() == b"bearer" else b"")
    return given[0] if len(given) == 1 and 0 < len(given[0]) <= 1024 else None


def _unauthorized(detail: str) -> Problem:
    return Problem("unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


def _digest_of(place: str, key: str) -> bytes:
    if hashed := _SHA256.fullmatch(key):
        return bytes.fromhex(hashed[1])
    if len(key) < _LEAST_CHARACTERS:
        raise UsageError(
            f"{place}: an API key is NAME:KEY, and this KEY is shorter than {_LEAST_CHARACTERS} characters; "
            "make one with `python -m srgan_service.http.keys NAME`"
        )
    return hashlib.sha256(key.encode()).digest()


def _read(path: Path) -> dict[str, _Entry]:
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text())
        if set(content) - {"keys"}:
            raise UsageError(f"{path}: only tables [keys.NAME] are known")
        return {name: _Entry.model_validate(entry) for name, entry in content.get("keys", {}).items()}
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError, AttributeError) as error:
        kind = (
            "an entry needs sha256 = 64 hexadecimal digits" if isinstance(error, ValidationError) else "not TOML"
        )
        raise UsageError(f"{path}: {kind}; see docs/deployment.md") from error


if __name__ == "__main__":
    import sys

    if len(sys.argv) != 2 or not _NAME.fullmatch(sys.argv[1]):
        sys.exit("usage: python -m srgan_service.http.keys NAME")
    made, made_sha256 = new_key()
    print(f"key, to be given to its holder: {made}", file=sys.stderr)
    print(f'[keys."{sys.argv[1]}"]\nsha256 = "{made_sha256}"')
