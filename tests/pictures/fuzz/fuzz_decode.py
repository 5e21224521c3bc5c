"""Fuzz decoding with atheris: any bytes are a picture or an error of ours, and what was read can be written.

    pip install atheris
    python tests/fuzz/fuzz_decode.py --seeds CORPUS         write the seeds into a folder
    python tests/fuzz/fuzz_decode.py CORPUS -max_total_time=600 -timeout=5 -rss_limit_mb=3000

Give it little memory besides (`ulimit -v 6000000`). A crash is left as a file in the current folder; it becomes a
test of its own, with a builder in tests/hostile.py.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


def write_seeds(folder: Path) -> None:
    """Write a small good file of every kind."""
    from support.hostile import good_in_spite, seeds

    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (seeds() | good_in_spite()).items():
        (folder / name.replace(" ", "-")).write_bytes(content)


def fuzz() -> None:
    """Run until the arguments of libFuzzer say stop, or a finding does."""
    import atheris

    with atheris.instrument_imports(include=["srgan", "PIL"]):
        from support import hostile

    def one_input(content: bytes) -> None:
        for variant in {content, hostile.mended(content)}:
            hostile.read_and_write(variant)

    warnings.simplefilter("ignore")
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--seeds"]:
        write_seeds(Path(sys.argv[2]))
    else:
        fuzz()
