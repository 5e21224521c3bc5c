"""`srgan page`: the page without a server, as a folder that any server of files can serve."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import asdict
from pathlib import Path

from srgan.commands.terminal import say
from srgan.conversion.browser import for_browser
from srgan.errors import OutputError, UsageError
from srgan.files import write_atomically
from srgan.texts import first_line, one_line
from srgan.weights import bundled_models, find_weights, lossy_rule

RUNTIME = "onnxruntime-web@1.30.0"  # as npm names it

# What of it the page needs: its name there, its name here (not all servers know that .mjs is JavaScript), sha256.
RUNTIME_FILES = {
    "ort.wasm.min.mjs": ("ort.wasm.js", "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b"),
    "ort-wasm-simd-threaded.mjs": (
        "ort-wasm.js",
        "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    ),
    "ort-wasm-simd-threaded.wasm": (
        "ort-wasm.wasm",
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    ),
    "ort.webgpu.min.mjs": ("ort.webgpu.js", "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0"),
    "ort-wasm-simd-threaded.asyncify.mjs": (
        "ort-webgpu.js",
        "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    ),
    "ort-wasm-simd-threaded.asyncify.wasm": (
        "ort-webgpu.wasm",
        "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
    ),
}

_MARK = '<meta name="generator" content="srgan page">'

# local.js stands in for api.js, and takes from it what both share.
_BINDING = {
    "imports": {"./static/api.js": "./static/local.js"},
    "scopes": {"./static/local.js": {"./static/api.js": "./static/api.js"}},
}

# What is said otherwise without a service.
_WORDS = {
    '<a href="docs">API</a>': '<p id="backend" class="quiet"></p>',
    "Pictures go to this service and nowhere else.": "All of it happens in this browser: pictures go nowhere.",
    '<option value="avif">AVIF</option><option value="tiff">TIFF</option>': "",
    "PNG, JPEG, WebP, AVIF, TIFF, GIF, BMP": "PNG, JPEG, WebP, AVIF, BMP",
}

# Browsers run no modules from a file, so it has to be said without one.
_FROM_A_FILE = """if (location.protocol === "file:") addEventListener("DOMContentLoaded", () =>
  document.body.prepend("This page works from a server of files alone: python -m http.server, in its folder."));"""


def page(out: Path, runtime: Path | None = None) -> None:
    """Write the page into the folder `out`, with the bundled models and ONNX Runtime Web, and print its path.

    `runtime`: the package onnxruntime-web, as a folder or a .tgz; else npm brings it. A page that is there is
    written anew. Raises UsageError if the folder holds anything else, or the package is not to be had or another.
    """
    _refuse_foreign(out)
    files = {f"runtime/{name}": content for name, content in _runtime_files(runtime).items()}
    files |= _models() | _static()
    files |= {"index.html": files.pop("static/index.html")}  # last: what is there before is no page yet
    try:
        for name, content in files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out / name, content)
    except OSError as error:
        raise OutputError(f"{error.filename or out}: cannot be written: {error.strerror}") from error
    print(one_line(str(out / "index.html")))
    size = sum(map(len, files.values())) / 1e6
    say("note", f"{size:.0f} MB, for any server of files; to look at it: python -m http.server -d {out}")


def _refuse_foreign(out: Path) -> None:
    index = out / "index.html"
    if out.is_file() or (
        out.is_dir()
        and any(out.iterdir())
        and not (index.is_file() and _MARK in index.read_text(encoding="utf-8", errors="replace"))
    ):
        raise UsageError(f"{out}: holds something else than such a page; give another folder or an empty one")


def _runtime_files(package: Path | None) -> dict[str, bytes]:
    """Return what the page needs of the package, each file compared with its hash."""
    if package is not None:
        return _intact(package, _unpacked(package))
    with tempfile.TemporaryDirectory() as folder:
        fetched = _by_npm(Path(folder))
        return _intact(fetched, _unpacked(fetched))


def _by_npm(folder: Path) -> Path:
    """Have npm bring the package into `folder`, and return its file."""
    otherwise = f"`npm pack {RUNTIME}` makes a file of it elsewhere; give that, or an unpacked one, as --runtime"
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError(f"the page needs {RUNTIME}, and npm, which brings it, is not installed: {otherwise}")
    say("note", f"npm brings {RUNTIME}, 33 MB, from its registry or its cache")
    arguments = ["pack", RUNTIME, "--ignore-scripts", "--prefer-offline", "--fetch-retries=1", "--loglevel=error"]
    done = subprocess.run(  # noqa: S603  # the npm of who asks for it
        [npm, *arguments], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    brought = list(folder.glob("*.tgz"))
    if done.returncode or not brought:
        reason = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()[0]
        raise UsageError(f"npm could not bring {RUNTIME} ({reason}): {otherwise}")
    return brought[0]


def _unpacked(package: Path) -> dict[str, bytes]:
    """Return those of `RUNTIME_FILES` that are in the package, by their names there."""
    try:
        if package.is_dir():
            paths = {name: package / "dist" / name for name in RUNTIME_FILES}
            return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
        wanted = {f"package/dist/{name}": name for name in RUNTIME_FILES}
        with tarfile.open(package) as archive:
            members = [member for member in archive if member.name in wanted and member.isfile()]
            opened = {wanted[member.name]: archive.extractfile(member) for member in members}
            return {name: file.read() for name, file in opened.items() if file is not None}
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UsageError(f"{package}: cannot be read as the package {RUNTIME}: {first_line(error)}") from error


def _intact(package: Path, contents: dict[str, bytes]) -> dict[str, bytes]:
    """Return `contents` by the names that they have here; raises UsageError if one is absent or another."""
    files = {}
    for name, (target, sha256) in RUNTIME_FILES.items():
        if name not in contents:
            raise UsageError(f"{package}: is not the package {RUNTIME}: it has no dist/{name}")
        if hashlib.sha256(contents[name]).hexdigest() != sha256:
            raise UsageError(
                f"{package}: its dist/{name} is not that of {RUNTIME}: of another version, or damaged"
            )
        files[target] = contents[name]
    return files


def _models() -> dict[str, bytes]:
    """Return the files of the bundled models, and their list."""
    files, listed = {}, []
    for model in bundled_models():
        content, metadata = for_browser(find_weights(model.name), faithful=model.is_faithful)
        files[f"models/{model.name}.onnx"] = content
        listed.append(
            {
                "name": model.name,
                "description": model.description,
                "scale": model.scale,
                "default": model.is_default,
                "faithful": model.is_faithful,
                "halo_lr_px": metadata.halo_lr_px,
                "file": f"{model.name}.onnx",
            }
        )
    rule = lossy_rule()
    told = {"models": listed, "lossy": rule and asdict(rule)}
    files["models/models.json"] = json.dumps(told, indent=1).encode()
    return files


def _static() -> dict[str, bytes]:
    """Return the service's page, with local.js in place of what speaks with the service."""
    folder = Path(str(importlib.resources.files("srgan_service"))) / "static"
    files = {
        f"static/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    files["static/index.html"] = _local(files["static/index.html"].decode()).encode()
    return files


def _local(html: str) -> str:
    """Return the page bound to local.js, and to its own server: the browser lets nothing go anywhere else."""
    binding = json.dumps(_BINDING)
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in (binding, _FROM_A_FILE))
    policy = (
        "default-src 'self'; img-src 'self' blob: data:; connect-src 'self' blob:; "
        f"script-src 'self' 'wasm-unsafe-eval' {allowed}; form-action 'none'; base-uri 'none'"
    )
    first = '<meta charset="utf-8">'
    head = [
        first,
        _MARK,
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f'<script type="importmap">{binding}</script>',
        f"<script>{_FROM_A_FILE}</script>",
    ]
    for text, instead in {first: "\n  ".join(head), **_WORDS}.items():
        if text not in html:
            raise OutputError(f"the page has no {text!r}; install srgan again")
        html = html.replace(text, instead, 1)
    return html


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
