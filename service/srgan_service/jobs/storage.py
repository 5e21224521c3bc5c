"""Where the pictures of jobs lie: a local folder or any file system that fsspec knows."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import fsspec

from srgan.errors import UsageError
from srgan.files import TEMPORARY_SUFFIX, written_whole

# Every entry of an archive gets this time, so that the same pictures make the same bytes.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)

_PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600


class Storage:
    """Files by relative names below `url`, a folder or an fsspec URL such as s3://bucket/prefix.

    Local folders that it makes and the files in them are for this user alone: they are other people's pictures.
    A file appears whole or not at all: locally by a rename after a flush, elsewhere as object stores do. Names are
    made by the service; nothing of a client is in them. Raises UsageError for a URL whose file system is missing.
    """

    def __init__(self, url: str) -> None:
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"data_dir {url!r}: {error}") from error
        self._root = root.rstrip("/")
        self.local = Path(self._root) if "file" in _protocols(self._fs) else None

    def prepare(self) -> None:
        """Make the folder, if it is a local one, and see that files can be written there. Raises OSError."""
        if self.local is not None:
            _make_private(self.local)
            for folder in self.local.iterdir():  # of a version that made them for everybody
                if folder.name in ("jobs", "executors"):
                    with contextlib.suppress(PermissionError):
                        folder.chmod(_PRIVATE_FOLDER)
            with tempfile.TemporaryFile(dir=self.local):
                pass

    def write(self, name: str, content: bytes) -> None:
        """Make the file `name` hold `content`. Raises OSError."""
        with self._written(name) as file:
            file.write(content)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Return the bytes of a file, or those from `start` to before `stop`. Raises OSError."""
        content: bytes = self._fs.cat_file(self._path(name), start, stop)
        return content

    def archive(self, name: str, entries: Iterable[tuple[str, str]]) -> int:
        """Make `name` a ZIP archive of `entries`, pairs of a name in it and a file here; return its bytes."""
        with self._written(name) as part, zipfile.ZipFile(part, "w") as archive:
            for inside, file in entries:
                archive.writestr(zipfile.ZipInfo(inside, _ZIP_TIME), self.read(file))  # stored: pictures are dense
        size: int = self._fs.info(self._path(name))["size"]
        return size

    def exists(self, name: str) -> bool:
        """Return whether there is a file `name`."""
        return bool(self._fs.exists(self._path(name)))

    def names(self, folder: str) -> list[str]:
        """Return the names of what lies directly in `folder`, nothing if there is no such folder."""
        self._fs.invalidate_cache()
        try:
            return sorted(
                str(path).rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._path(folder), detail=False)
            )
        except FileNotFoundError:
            return []

    def remove(self, name: str) -> None:
        """Remove a file, or a folder and all in it; what is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(name), recursive=True)

    def prune(self, folder: str) -> None:
        """Remove a local folder if there is nothing in it; elsewhere there is none then."""
        if self.local is not None:
            with contextlib.suppress(OSError):
                (self.local / folder).rmdir()

    def size_bytes(self, folder: str) -> int:
        """Return how many bytes all files of a folder have together, 0 if there is no such folder."""
        try:
            return int(self._fs.du(self._path(folder)))
        except FileNotFoundError:
            return 0

    def sweep(self, age_s: float) -> None:
        """Remove what killed processes left half-written at least `age_s` ago; elsewhere nothing appears half."""
        if self.local is None:
            return
        for path in self.local.rglob(f".*{TEMPORARY_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # finished meanwhile, or removed with its job
                if time.time() - path.stat().st_mtime >= age_s:
                    path.unlink()

    @contextlib.contextmanager
    def _written(self, name: str) -> Iterator[IO[bytes]]:
        """Yield a file to fill that becomes `name` at the end of the block."""
        if self.local is None:
            with self._fs.open(self._path(name), "wb") as opened:  # appears when it is closed
                yield opened
            return
        path = self.local / name
        _make_private(path.parent)
        with written_whole(path) as file:
            Path(file.name).chmod(PRIVATE_FILE)
            yield file

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for this user alone; what is there stays as it is."""
    missing = list(itertools.takewhile(lambda place: not place.exists(), (folder, *folder.parents)))
    for place in reversed(missing):
        place.mkdir(_PRIVATE_FOLDER, exist_ok=True)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
