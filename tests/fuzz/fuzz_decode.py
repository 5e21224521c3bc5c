"""Fuzz decoding with atheris: any bytes are a picture or an error of ours, and what was read can be written.

    pip install atheris
    python tests/fuzz/fuzz_decode.py --seeds CORPUS         write the seeds into a folder
    python tests/fuzz/fuzz_decode.py CORPUS -max_total_time=600 -timeout=5 -rss_limit_mb=2048

A crash is left as a file in the current folder. It becomes a test of its own in tests/test_fuzz_decode.py.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def one_input(content: bytes) -> None:
    """Judge, decode and encode again; any exception but ours is a finding."""
    header = headers.read_header(io.BytesIO(content), max_scans=100)
    try:
        if header is not None:
            headers.refuse(header, "it", headers.Limits.of_own_pictures(1))
        picture = pictures.decode(content, max_megapixels=1)
    except SrganError:
        return
    format = picture.format if pictures.why_not(picture, picture.format) is None else "png"
    if pictures.why_not(picture, format) is None:
        pictures.encode(picture, format)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--seeds"]:
        from hostile import good_in_spite, seeds

        folder = Path(sys.argv[2])
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (seeds() | good_in_spite()).items():
            (folder / name.replace(" ", "-")).write_bytes(content)
        sys.exit()

    import atheris

    with atheris.instrument_imports(include=["srgan", "PIL"]):
        import io

        from srgan import headers, pictures
        from srgan.errors import SrganError

    warnings.simplefilter("ignore")
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
