"""What lies in a folder of results, and from what and how it was made; so that a run goes on where another ended.

A folder of results holds a hidden folder `.srgan`: a small SQLite database and a lock for each run at work. A
result is known by its size and time of modification, its source by the same and its path. What became known is
written before the result gets its name, so whatever is killed, every result that lies there is known.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import sqlite3
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from srgan.errors import OutputError, PictureError
from srgan.files import TEMPORARY_SUFFIX, put_in_place, removed_on_error, temporary_beside

FOLDER = ".srgan"
_DATABASE = "manifest.sqlite"
_LOCK_SUFFIX = ".run"
_RUN = re.compile(r"[0-9a-f]{8}")
_FORMAT = 1

# Two processes write in turn, each for a few milliseconds; on a network, for longer.
_BUSY_TIMEOUT_S = 120

_ROOM = "make room and run again, finished files stay"

# After one of these, the next file would fail alike.
_HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass(frozen=True)
class Origin:
    """A source file as it was when it was read: enough to see whether it is still the same."""

    path: str
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Origin:
        """Look at `path`; raises OSError if it is not there."""
        status = path.stat()
        return cls(os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ino)


class Manifest:
    """The results in the folder `root`. Nothing is made there before `temporary` is called. Any thread may call.

    `begins`: whether a hidden folder is made where there is none. Without, nothing is known of what is made; what
    another run's knows is heeded, and added to. Raises OutputError if what is known of the folder cannot be read.
    """

    def __init__(self, root: Path, *, begins: bool = True) -> None:
        self.root = root
        self._begins = begins
        self._hidden = root / FOLDER
        self._lock = threading.RLock()
        self._folders: set[Path] = set()
        self._run = ""  # until something is to be written
        self._alive: FileLock | None = None
        self._database: sqlite3.Connection | None = None
        with self._explained():
            if self._hidden.is_symlink() or (self._hidden / _DATABASE).is_symlink():
                raise OutputError(f"{self._hidden}: is or holds a symbolic link, which is not followed; remove it")
            if (self._hidden / _DATABASE).exists():
                self._database = self._opened()
                self._clean_up_after_the_dead()

    def close(self, *, abandoned: bool = False) -> None:
        """Let go of the folder. `abandoned`: other threads may still be writing; what they leave is removed, here
        or by the next run.
        """
        with self._lock, contextlib.suppress(OSError, OutputError, sqlite3.Error):
            if self._database is not None and self._alive is not None:
                if abandoned:
                    _abandoned.append(self._alive)
                    self._remove_temporaries_of(self._run)
                else:
                    self._fetched("DELETE FROM folders WHERE run = ?", self._run)
                    _given_up(self._alive)
        if self._database is not None and not abandoned:
            self._database.close()

    def finished(self, planned: Path, origin: Origin, settings: str) -> Path | None:
        """Return where the result of `origin` with these settings lies, or None if it has yet to be made.

        `planned`: where the plan puts it; another suffix may have been needed.
        """
        for row in self._results("planned", planned):
            if row.settings == settings and row.is_of(origin) and row.is_at(self._path(row.target)):
                return self._path(row.target)
        return None

    def refuse_foreign(self, target: Path, origin: Origin, settings: str) -> None:
        """Raise PictureError if `target` exists, unless it is what `settings` made of the same source before.

        That is replaced when its source has changed. What others made or touched, what another model or other
        settings made, and links stay.
        """
        try:
            status = target.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise PictureError(f"{target}: cannot be written: {error.strerror}") from error
        remedy = "give another -o or --name, or --overwrite to replace it"
        if stat.S_ISLNK(status.st_mode):
            raise PictureError(f"{target}: is a symbolic link; {remedy}")
        if stat.S_ISDIR(status.st_mode):
            raise PictureError(f"{target}: cannot be written: Is a directory")
        for row in self._results("target", target):
            if row.is_at(target):
                if row.origin.path == origin.path or row.is_of(origin):
                    if row.settings == settings:
                        return
                    raise PictureError(f"{target}: another model or other settings made it; {remedy}")
                raise PictureError(f"{target}: is the result of {row.origin.path}; {remedy}")
        if self._keeps():
            raise PictureError(f"{target}: exists, and is not as this program left it; {remedy}")
        raise PictureError(f"{target}: exists already; {remedy}")

    def temporary(self, target: Path) -> Path:
        """Return a name for what will become `target`, whose folder is made.

        Raises PictureError if the folder cannot be made or a link in it leads out of the root.
        """
        folder = target.parent
        with self._lock:
            database = self._begun() if self._keeps() else None
            if folder not in self._folders:
                with explained(target):
                    folder.mkdir(parents=True, exist_ok=True)
                if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(self.root)):
                    raise PictureError(f"{folder}: a symbolic link leads out of {self.root}; remove it")
                if database is not None:
                    with self._explained():
                        row = self._run, self._name(folder)
                        database.execute("INSERT OR IGNORE INTO folders VALUES (?, ?)", row)
                if len(self._folders) > 1000:
                    self._folders.clear()
                self._folders.add(folder)
        with explained(target), contextlib.suppress(FileNotFoundError):
            target.lstat()  # its folder is there now, so a name that is too long shows
        return temporary_beside(target, self._run)

    def put(self, temporary: Path, target: Path, planned: Path, origin: Origin, settings: str) -> None:
        """Rename `temporary` to `target` and know it from then on; raises what `explained` does."""
        with removed_on_error(temporary), self._lock, explained(target):
            if not self._keeps():
                put_in_place(temporary, target)
                return
            made = temporary.lstat()
            row = _Result(
                target=self._name(target),
                size=made.st_size,
                mtime_ns=made.st_mtime_ns,
                planned=self._name(planned),
                settings=settings,
                origin=origin,
            )
            with self._explained():
                self._begun().execute(
                    "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row.flat()
                )
            put_in_place(temporary, target)

    def _keeps(self) -> bool:
        return self._begins or self._database is not None

    def _begun(self) -> sqlite3.Connection:
        """Return the database after the hidden folder is made and this run has its lock."""
        if self._database is None or self._alive is None:
            with self._explained():
                self._hidden.mkdir(parents=True, exist_ok=True)
                self._run, self._alive = _claimed_run(self._hidden)
                self._database = self._database or self._opened()
        return self._database

    def _opened(self) -> sqlite3.Connection:
        path = self._hidden / _DATABASE
        database = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version > _FORMAT:
                raise OutputError(f"{path}: format {version} is newer than this program; update srgan")
            if version == 0:
                database.executescript(_TABLES)
        except BaseException:
            database.close()
            raise
        return database

    def _clean_up_after_the_dead(self) -> None:
        """Remove the temporaries of runs that are no more: of those whose lock nobody holds."""
        runs = {lock.stem for lock in self._hidden.glob(f"*{_LOCK_SUFFIX}")}
        runs |= {run for (run,) in self._fetched("SELECT DISTINCT run FROM folders")}
        for run in filter(_RUN.fullmatch, runs):
            lock = _lock_of(self._hidden, run)
            try:
                lock.acquire()
            except OSError:  # Timeout, since the run lives, or a folder that cannot be written
                continue
            try:
                self._remove_temporaries_of(run)
                self._fetched("DELETE FROM folders WHERE run = ?", run)
            finally:
                _given_up(lock)

    def _remove_temporaries_of(self, run: str) -> None:
        for (name,) in self._fetched("SELECT folder FROM folders WHERE run = ?", run):
            with contextlib.suppress(FileNotFoundError):
                for path in self._path(name).iterdir():
                    if path.name.startswith(f".{run}") and path.name.endswith(TEMPORARY_SUFFIX):
                        path.unlink(missing_ok=True)

    def _results(self, column: str, path: Path) -> list[_Result]:
        query = f"SELECT * FROM results WHERE {column} = ?"  # noqa: S608  # a constant
        return [_Result.of(row) for row in self._fetched(query, self._name(path))]

    def _fetched(self, query: str, *parameters: str | bytes) -> list[Any]:
        with self._lock, self._explained():
            return self._database.execute(query, parameters).fetchall() if self._database is not None else []

    def _name(self, path: Path) -> bytes:
        return os.fsencode(os.path.relpath(path, self.root))

    def _path(self, name: bytes) -> Path:
        return self.root / os.fsdecode(name)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in terms of the folder what goes wrong with its records."""
        try:
            with explained(self._hidden):
                yield
        except sqlite3.OperationalError as error:
            if "full" not in str(error):
                raise OutputError(f"{self._hidden / _DATABASE}: cannot be used: {error}") from error
            raise OutputError(f"{self.root}: No space left on device; {_ROOM}") from error
        except sqlite3.DatabaseError as error:
            path = self._hidden / _DATABASE
            raise OutputError(f"{path}: is damaged ({error}); remove it and run with --overwrite") from error


# A result may have several rows: when two runs make it at once, either may be the last to rename. Times and inodes
# are text, for they may need more than the 63 bits of SQLite's integers.
_TABLES = f"""
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS results (
        target BLOB, size INT, mtime_ns TEXT, planned BLOB, settings TEXT,
        source BLOB, source_size INT, source_mtime_ns TEXT, source_inode TEXT,
        PRIMARY KEY (target, size, mtime_ns)) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS by_planned ON results (planned);
    CREATE TABLE IF NOT EXISTS folders (run TEXT, folder BLOB, PRIMARY KEY (run, folder)) WITHOUT ROWID;
    PRAGMA user_version = {_FORMAT};
    COMMIT;
"""


@dataclass(frozen=True)
class _Result:
    target: bytes
    size: int
    mtime_ns: int
    planned: bytes
    settings: str
    origin: Origin

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> _Result:
        target, size, mtime_ns, planned, settings, *source = row
        origin = Origin(os.fsdecode(source[0]), *map(int, source[1:]))
        return cls(
            target=target, size=size, mtime_ns=int(mtime_ns), planned=planned, settings=settings, origin=origin
        )

    def flat(self) -> tuple[object, ...]:
        result = self.target, self.size, str(self.mtime_ns), self.planned, self.settings
        source = self.origin
        return *result, os.fsencode(source.path), source.size, str(source.mtime_ns), str(source.inode)

    def is_at(self, path: Path) -> bool:
        try:
            status = path.lstat()
        except OSError:
            return False
        is_file = stat.S_ISREG(status.st_mode)
        return is_file and (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)

    def is_of(self, origin: Origin) -> bool:
        """Return whether the source is still as it was; it may have been moved, but not copied."""
        ours = self.origin
        unchanged = (ours.size, ours.mtime_ns) == (origin.size, origin.mtime_ns)
        return unchanged and (ours.path == origin.path or ours.inode == origin.inode)


@contextlib.contextmanager
def explained(target: Path) -> Iterator[None]:
    """Turn an OSError of writing `target` into a PictureError, or an OutputError if the next would fail alike."""
    try:
        yield
    except OSError as error:
        if error.errno in _HOPELESS:
            raise OutputError(f"{target}: {error.strerror}; {_ROOM}") from error
        raise PictureError(f"{target}: cannot be written: {error.strerror}") from error


# Locks of runs whose threads may still be writing: held until this process ends.
_abandoned: list[FileLock] = []


def _claimed_run(folder: Path) -> tuple[str, FileLock]:
    """Return the name of a new run and the lock that says that it lives: whatever kills it gives that up."""
    while True:
        run = secrets.token_hex(4)
        lock = _lock_of(folder, run)
        # Between its making and its locking somebody may have taken the file for a dead run's.
        with contextlib.suppress(TimeoutError):
            lock.acquire()
            if Path(lock.lock_file).exists():
                return run, lock
            lock.release()


def _lock_of(folder: Path, run: str) -> FileLock:
    # Not of a thread: whichever comes last closes the folder.
    return FileLock(folder / f"{run}{_LOCK_SUFFIX}", blocking=False, thread_local=False)


def _given_up(lock: FileLock) -> None:
    """Release `lock` and remove its file, in this order for Windows, which removes nothing that is open."""
    lock.release()
    with contextlib.suppress(OSError):  # it is gone, or another run looks whether this one lives
        Path(lock.lock_file).unlink()
