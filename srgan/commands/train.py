"""`srgan train`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from srgan.errors import UsageError
from srgan.training import trainer
from srgan.training.config import load_recipe
from srgan.training.data.cache import build_cache
from srgan.training.data.check import findings, summary
from srgan.training.data.sources import parse_source
from srgan.training.games import play_module
from srgan.training.processes import make_fabric, together

log = logging.getLogger(__name__)


def train(
    recipe: str,
    data: Sequence[str],
    run: Path,
    overrides: Sequence[str] = (),
    minutes: float | None = None,
    resume: bool = False,
    devices: int = 1,
    nodes: int = 1,
) -> None:
    """Train `recipe` on the pictures of `data` and leave everything in the folder `run`.

    `data`: folders, as DIR, DIR=WEIGHT (its share of the patches) or HR_DIR:LR_DIR (LR as shipped).

    `devices`: GPUs, or CPU processes where there is no GPU, on each of `nodes` machines.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("srgan").setLevel(logging.INFO)  # the libraries keep to warnings
    settings = load_recipe(recipe, overrides)
    if minutes is not None and not minutes > 0:
        raise UsageError(f"--minutes {minutes}: give a positive number")
    if devices < 1 or nodes < 1:
        raise UsageError(f"--devices {devices} --nodes {nodes}: give at least 1 of each")
    if settings.main_network:
        if minutes is not None or resume or devices * nodes > 1:
            raise UsageError("a main_network is trained by steps, in one process and one sitting")
        log.info("written: %s", play_module(settings, data, run))
        return
    fabric = make_fabric(settings, devices, nodes)
    with together(fabric):
        if not fabric.is_global_zero:  # whatever is told of the pictures or the run, the first process tells
            logging.getLogger("srgan").setLevel(logging.ERROR)
        with fabric.rank_zero_first():  # the others then only map what the first has packed
            sources = [parse_source(text) for text in data]
            cache = build_cache(sources, run.parent / "cache", max_bad_share=settings.data.max_bad_share)
        log.info("%s", summary(findings(cache, settings)))
        for path in trainer.train(settings, cache, run, minutes=minutes, resume=resume, fabric=fabric):
            log.info("written: %s", path)
