"""Which file becomes which: all of it is known, and what cannot be done is found, before any work."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import sqlite3
import stat
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from srgan.errors import UsageError
from srgan.folder.making import AUTO, format_of_name, known_format
from srgan.pictures import FORMATS, PICTURE_SUFFIXES, START_BYTES, format_of_start, format_of_suffix

# Files that are passed over and named; the others are counted.
_NAMED = 10

# Suffixes of results whose input has a suffix that is read but not written.
_RESULT_SUFFIXES = {".pbm": ".ppm", ".mpo": ".jpg", ".avifs": ".avif"}


@dataclass(frozen=True)
class Naming:
    """How results are called: by a `template` of {stem}, {size}, {scale}, {model} and {strength}.

    {size} is x4 or 2000px, as `Request.label` puts it, {scale} the same without the x. Raises UsageError for a
    template of anything else.
    """

    size: str = "x4"
    template: str = "{stem}_{size}"
    model: str = ""
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a template that names nothing, before any work."""
        self.of("picture")

    def of(self, stem: str) -> str:
        """Return the name for the result of `stem`, without its suffix; a plain name, whatever the model's is."""
        fields = {
            "stem": stem,
            "size": self.size,
            "scale": self.size.removeprefix("x"),
            "model": self.model,
            "strength": f"{self.strength:g}",
        }
        # Not str.format, which would look into the fields' attributes.
        parts = re.split(r"\{(\w+)\}", self.template)
        if not set(parts[1::2]) <= set(fields) or any(brace in text for text in parts[::2] for brace in "{}"):
            known = ", ".join(f"{{{field}}}" for field in fields)
            raise UsageError(f"--name {self.template!r} is not understood: it takes {known}")
        name = "".join(fields[part] if number % 2 else part for number, part in enumerate(parts))
        if not name.strip(". ") or any(character in name for character in "/\\\0"):
            raise UsageError(f"--name {self.template!r} makes {name!r}, which is no name of a file")
        return name


@dataclass(frozen=True)
class Job:
    """One picture to read and where its result goes.

    `format`: a key of `pictures.FORMATS`, or `AUTO`. `root`: the folder that the result must not leave.
    """

    source: Path
    target: Path
    format: str
    root: Path


def plan(
    inputs: Sequence[Path],
    out: Path | None,
    naming: Naming,
    *,
    format: str = AUTO,
    follow_links: bool = False,
) -> Plan:
    """Return which files become which; `naming` says what results are called.

    A file `photo.jpg` becomes `photo_x4.jpg` beside it or in the folder `out`, or `out` itself if that names a
    picture. A folder becomes the same tree in `out`, or in a folder beside it with "_x4" to its name; hidden
    files, files that are no pictures by their suffix (where they have none, by how they begin) and, without
    `follow_links`, symbolic links that lead out of the folder are left alone. Of pictures that would become one
    file, the first alone does; none becomes one of the inputs. Raises UsageError, before any work, if an input
    does not exist or nothing can be done.
    """
    format = known_format(format)
    for path in inputs:
        if not os.path.exists(path):  # noqa: PTH110  # Path.exists raises where a folder may not be searched
            raise UsageError(f"{path}: no such file or folder")
    if out is not None:
        refuse_impossible(out)
    made = Plan()
    names_a_picture = out is not None and _names_a_picture(out)
    made.is_one_file = len(inputs) == 1 and not inputs[0].is_dir() and (out is None or names_a_picture)
    if out is not None and names_a_picture:
        made.add(0, _job_with_named_target(inputs, out, format))
    elif out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file, neither a folder nor the name of a picture; give another -o")
    elif out is not None and _looks_like_a_file(out) and [path.is_dir() for path in inputs] == [False]:
        raise UsageError(
            f"{out}: {out.suffix} cannot be written; choose {', '.join(FORMATS)}, or make that folder"
        )
    else:
        for position, path in enumerate(inputs):
            if path.is_dir():
                tree = Tree(path, out or _beside(path, naming), naming, format, follow_links=follow_links)
                for job in tree.jobs():
                    made.add(position, job)
                made.note(tree)
            else:
                made.add(position, _job(path, out or path.parent, naming, format, out or path.parent))
    if not len(made) and not made.unreadable:
        for _, reason in made.refused():
            raise UsageError(reason)
        raise UsageError(f"no pictures in {', '.join(map(str, inputs))}: none ends in {_known_suffixes()}")
    return made


def tree(
    inputs: Sequence[Path],
    out: Path | None,
    naming: Naming,
    *,
    format: str = AUTO,
    follow_links: bool = False,
) -> Tree:
    """Return the one folder of `inputs` as `plan` would see it; raises UsageError if it is anything else."""
    if len(inputs) != 1 or not inputs[0].is_dir():
        raise UsageError("--watch takes one folder")
    target = out or _beside(inputs[0], naming)
    refuse_impossible(target)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target}: is a file, not a folder; give another -o")
    return Tree(inputs[0], target, naming, known_format(format), follow_links=follow_links)


def refuse_impossible(out: Path) -> None:
    """Raise UsageError if there can be nothing at `out`, or it is no name but a suffix."""
    try:
        out.lstat()
    except (FileNotFoundError, NotADirectoryError):
        if out.name.lower() in PICTURE_SUFFIXES:
            raise UsageError(f"{out}: is a suffix without a name; give -o a name before it") from None
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}; give another -o") from error


@dataclass(frozen=True)
class PassedOver:
    """Files that nothing is done about: how many, and the first of them."""

    count: int = 0
    first: tuple[Path, ...] = ()

    def __add__(self, other: PassedOver) -> PassedOver:
        return PassedOver(self.count + other.count, (*self.first, *other.first)[:_NAMED])

    def facts(self) -> dict[str, object]:
        """Return both, fit for JSON."""
        return {"count": self.count, "first": list(map(str, self.first))}

    def __str__(self) -> str:
        names = ", ".join(path.name for path in self.first)
        return names if self.count == len(self.first) else f"{names} and {self.count - len(self.first)} more"


class Plan:
    """All jobs, in the order of the inputs and their names; iterate over it as often as you like.

    `unreadable`: folders that could not be listed, each with the reason. `links_left`: how many symbolic links
    were not followed. `passed_over`: files in folders that are no pictures. `is_one_file`: whether one picture was
    named and no folder, neither for it nor for its result: then no record is begun beside it. Jobs that cannot be
    carried out are not among the others, but `refused`. The jobs lie in a temporary database, so that a hundred
    thousand of them take no memory, are sorted, and are compared with each other by whoever does that best. Any
    thread may call.
    """

    def __init__(self) -> None:
        self.unreadable: tuple[tuple[Path, str], ...] = ()
        self.links_left = 0
        self.passed_over = PassedOver()
        self.is_one_file = False
        # An empty name: a file of SQLite's own that goes when the connection does.
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._lock = threading.Lock()
        self._real_folder = lru_cache(maxsize=1000)(os.path.realpath)  # files come folder by folder
        self._ignores_case = lru_cache(maxsize=1000)(ignores_case)
        self._database.executescript(
            """
            PRAGMA journal_mode = OFF;
            CREATE TABLE jobs (position INT, folder BLOB, name BLOB, target BLOB, format TEXT, root BLOB,
                place BLOB, PRIMARY KEY (position, folder, name, target)) WITHOUT ROWID;
            CREATE UNIQUE INDEX by_place ON jobs (place, folder, name);
            CREATE TABLE sources (place BLOB PRIMARY KEY) WITHOUT ROWID;
            CREATE TABLE claims (place BLOB PRIMARY KEY) WITHOUT ROWID;
            CREATE VIEW judged AS SELECT *,
                place IN (SELECT place FROM sources) AS is_input,
                (SELECT CAST(iif(folder = X'', name, folder || '/' || name) AS BLOB) FROM jobs AS other
                    WHERE place = jobs.place AND (position, folder, name)
                        < (jobs.position, jobs.folder, jobs.name)
                    ORDER BY position, folder, name LIMIT 1) AS before
                FROM jobs;
            BEGIN;
            """
        )

    def add(self, position: int, job: Job) -> None:
        """Take a job of the input number `position`; the same one twice counts once."""
        source, target = os.fsencode(job.source), os.fsencode(job.target)
        with self._lock:
            row = (self._place(job.source, job.root),)
            self._database.execute("INSERT OR IGNORE INTO sources VALUES (?)", row)
            facts: tuple[object, ...] = (
                target,
                job.format,
                os.fsencode(job.root),
                self._place(job.target, job.root),
            )
            self._database.execute(
                "INSERT OR IGNORE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?)",
                (position, *os.path.split(source), *facts),
            )

    def note(self, tree: Tree) -> None:
        """Take what was met on the way through a folder beside its pictures."""
        self.unreadable += tuple(tree.unreadable)
        self.links_left += tree.links_left
        self.passed_over += tree.passed_over

    def refused(self) -> Iterator[tuple[Path, str]]:
        """Yield the source of each job that cannot be carried out, with the reason."""
        with self._lock:
            rows = self._database.execute(
                "SELECT folder, name, target, before FROM judged WHERE is_input OR before IS NOT NULL "
                "ORDER BY position, folder, name"
            ).fetchall()
        for folder, name, target, before in rows:
            source, result = (os.fsdecode(path) for path in (os.path.join(folder, name), target))  # noqa: PTH118
            if before is None:
                yield Path(source), f"{result}: is an input and would be overwritten; give another folder with -o"
                continue
            first = os.fsdecode(before)
            yield (
                Path(source),
                f"{first} and {source} would both become {result}; rename one or upscale them apart",
            )

    def claim(self, target: Path, job: Job) -> bool:
        """Return whether `job` may have `target` for its result, which then belongs to nobody else."""
        place = (self._place(target, job.root),)
        with self._lock:
            for table in ("sources", "jobs"):
                query = f"SELECT 1 FROM {table} WHERE place = ? LIMIT 1"  # noqa: S608  # constants
                if self._database.execute(query, place).fetchone():
                    return False
            return bool(self._database.execute("INSERT OR IGNORE INTO claims VALUES (?)", place).rowcount)

    @property
    def total(self) -> int:
        """How many reports there will be: one of each job, done or refused, and of each folder not listed."""
        with self._lock:
            return int(self._database.execute("SELECT count(*) FROM jobs").fetchone()[0]) + len(self.unreadable)

    def __len__(self) -> int:
        with self._lock:
            query = "SELECT count(*) FROM judged WHERE NOT is_input AND before IS NULL"
            return int(self._database.execute(query).fetchone()[0])

    def __iter__(self) -> Iterator[Job]:
        with self._lock:
            rows = self._database.execute(
                "SELECT folder, name, target, format, root FROM judged WHERE NOT is_input AND before IS NULL "
                "ORDER BY position, folder, name"
            )
        while True:
            with self._lock:
                some = rows.fetchmany(100)
            if not some:
                return
            for folder, name, target, format, root in some:
                source = Path(os.fsdecode(os.path.join(folder, name)))  # noqa: PTH118  # bytes
                yield Job(source, Path(os.fsdecode(target)), format, Path(os.fsdecode(root)))

    def _place(self, path: Path, root: Path) -> bytes:
        """Return what all spellings of one place have in common; a link at the place itself is not followed."""
        spelt = f"{self._real_folder(path.parent)}/{path.name}"
        if self._ignores_case(root):  # such file systems rarely tell composed from decomposed letters either
            spelt = unicodedata.normalize("NFC", unicodedata.normalize("NFC", spelt).casefold())
        return hashlib.blake2b(os.fsencode(spelt), digest_size=16).digest()


class Tree:
    """The pictures below `folder` and where each goes in the same tree below `target`; a walk in constant memory.

    `unreadable`, `links_left`, `passed_over`: as in `Plan`, after the walk. Raises UsageError if both folders are
    the same.
    """

    def __init__(
        self, folder: Path, target: Path, naming: Naming, format: str, *, follow_links: bool = False
    ) -> None:
        if os.path.realpath(target) == os.path.realpath(folder):
            raise UsageError(f"{folder}: results among their inputs would be inputs next time; give another -o")
        self.folder, self.target = folder, target
        self.unreadable: list[tuple[Path, str]] = []
        self.links_left = 0
        self.passed_over = PassedOver()
        self._naming, self._format, self._follow_links = naming, format, follow_links
        self._inside, self._results = os.path.realpath(folder), os.path.realpath(target)

    def jobs(self) -> Iterator[Job]:
        """Yield the jobs of the whole tree, in no particular order."""
        yield from self._below(self.folder, ())

    def look_again(self) -> PassedOver:
        """Return what is passed over now, in the whole tree."""
        self.passed_over = PassedOver()
        for _ in self.jobs():
            pass
        return self.passed_over

    def spelt(self, path: Path) -> Path:
        """Return `path`, which lies in the folder by its absolute or its real name, as `jobs_at` takes it."""
        for spelling in (self.folder, self.folder.absolute(), Path(self._inside)):
            if path.is_relative_to(spelling):
                return self.folder / path.relative_to(spelling)
        return self.folder

    def jobs_at(self, path: Path) -> Iterator[Job]:
        """Yield the job of a file in the tree or those of a folder in it, if they are not to be left alone.

        `path`: `folder` itself, or a path that begins with it.
        """
        inside = path.relative_to(self.folder).parts
        real = Path(os.path.realpath(path.parent if inside else path))
        if any(part.startswith(".") for part in inside) or real.is_relative_to(self._results):
            return
        if path.is_dir():
            if self._follow_links or not inside or not path.is_symlink():
                yield from self._below(path, ())
        elif _is_picture(path) and self._is_inside(path, path.is_symlink()):
            yield self._job(path)

    def _below(self, folder: Path, above: tuple[str, ...]) -> Iterator[Job]:
        here = os.path.realpath(folder)
        if here == self._results or here in above:  # its own results, or a link to a folder it lies in
            return
        folders = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        folders.append((entry.name, entry.is_symlink()))
                    elif not _is_picture(Path(entry)):
                        self.passed_over += PassedOver(1, (Path(entry),))
                    elif self._is_inside(Path(entry), entry.is_symlink()):
                        yield self._job(Path(entry))
        except OSError as error:
            self.unreadable.append((folder, error.strerror or str(error)))
        for name, is_link in sorted(folders):
            if is_link and not self._follow_links:
                self.links_left += 1
            else:
                yield from self._below(folder / name, (*above, here))

    def _is_inside(self, path: Path, is_link: bool) -> bool:
        if self._follow_links or not is_link:
            return True
        inside = Path(os.path.realpath(path)).is_relative_to(self._inside)
        self.links_left += not inside
        return inside

    def _job(self, source: Path) -> Job:
        mirrored = self.target / source.parent.relative_to(self.folder)
        return _job(source, mirrored, self._naming, self._format, self.target)


def ignores_case(folder: Path) -> bool:
    """Return whether the file system that holds `folder`, or will, takes A.png and a.png for one file.

    Seen from what lies there already, without writing anything; where nothing tells, it is taken to tell them
    apart.
    """
    place = Path(os.path.realpath(folder))
    while not os.path.isdir(place) and place != place.parent:  # noqa: PTH112  # as with exists
        place = place.parent
    try:
        with os.scandir(place) as entries:
            paths = [Path(entry) for entry in itertools.islice(entries, 100)]
        for path in (*paths, place):
            swapped = path.name.swapcase()
            if path.name.isascii() and swapped != path.name:
                other = path.with_name(swapped)
                return os.path.lexists(other) and os.path.samestat(other.lstat(), path.lstat())
    except OSError:  # cannot be listed, or something has just gone
        pass
    return False


def _is_picture(path: Path) -> bool:
    """Return whether a file in a folder is a picture: by its suffix, or without one by how it begins."""
    return path.suffix.lower() in PICTURE_SUFFIXES if path.suffix else format_of_start(_start(path)) is not None


def _start(path: Path) -> bytes:
    """Return the first bytes of a file, none of what is no file or cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(START_BYTES)
    except OSError:
        return b""


def _job(source: Path, folder: Path, naming: Naming, format: str, root: Path) -> Job:
    suffix = source.suffix.lower()
    stem = source.stem if suffix in PICTURE_SUFFIXES else source.name  # "photo.v2" is all stem
    found = format if format != AUTO else format_of_start(_start(source)) if not suffix else None
    if found in FORMATS:
        suffix = FORMATS[found].suffixes[0]
    elif format_of_suffix(suffix) is None:
        suffix = _RESULT_SUFFIXES.get(suffix, ".png")
    return Job(source, folder / f"{naming.of(stem)}{suffix}", format, root)


def _job_with_named_target(inputs: Sequence[Path], out: Path, format: str) -> Job:
    if len(inputs) != 1 or inputs[0].is_dir():
        raise UsageError(f"{out}: names one picture, but the input is more; give a folder with -o")
    return Job(inputs[0], out, format_of_name(out, format), out.parent)


def _names_a_picture(out: Path) -> bool:
    return out.suffix.lower() in PICTURE_SUFFIXES and not out.is_dir()


def _looks_like_a_file(out: Path) -> bool:
    """Return whether `out`, which is not there, has what is more likely a suffix than part of a name."""
    return not out.exists() and re.fullmatch(r"\.[A-Za-z][A-Za-z0-9_]{1,8}", out.suffix) is not None


def _beside(folder: Path, naming: Naming) -> Path:
    named = folder if folder.name not in ("", "..") else folder.resolve()
    if not named.name:
        raise UsageError(f"{folder}: there is no place beside it for the results; give a folder with -o")
    return named.with_name(naming.of(named.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _known_suffixes() -> str:
    return ", ".join(sorted(PICTURE_SUFFIXES))
