"""`srgan train`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from srgan.commands.options import TrainOptions
from srgan.errors import UsageError
from srgan.training import trainer
from srgan.training.config import Recipe, load_recipe
from srgan.training.data.cache import PictureCache, build_cache
from srgan.training.data.check import findings, summary
from srgan.training.data.sources import parse_source
from srgan.training.games import play_module
from srgan.training.processes import make_fabric, together
from srgan.training.run import Resume

log = logging.getLogger(__name__)


def train(options: TrainOptions) -> None:
    """Train a recipe on folders of pictures and leave everything in the folder of the run."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("srgan").setLevel(logging.INFO)  # the libraries keep to warnings
    settings = load_recipe(options.recipe, options.overrides or [])
    if options.minutes is not None and not options.minutes > 0:
        raise UsageError(f"--minutes {options.minutes}: give a positive number")
    if options.devices < 1 or options.nodes < 1:
        raise UsageError(f"--devices {options.devices} --nodes {options.nodes}: give at least 1 of each")
    if options.allow_changes and not options.resume:
        raise UsageError("--allow-changes is for --resume")
    if settings.main_network:
        if options.minutes is not None or options.resume or options.devices * options.nodes > 1:
            raise UsageError("a main_network is trained by steps, in one process and one sitting")
        log.info("written: %s", play_module(settings, options.data, options.run))
        return
    fabric = make_fabric(settings, options.devices, options.nodes)
    with together(fabric):
        if not fabric.is_global_zero:  # whatever is told of the pictures or the run, the first process tells
            logging.getLogger("srgan").setLevel(logging.ERROR)
        with fabric.rank_zero_first():  # the others then only map what the first has packed
            cache = _decoded(options.data, options.run, settings)
            if options.validation:
                judges = _decoded(options.validation, options.run, settings)
                cache = replace(cache, validation=judges)
        log.info("%s", summary(findings(cache, settings)))
        resume: Resume = "changed" if options.allow_changes else options.resume
        for path in trainer.train(
            settings, cache, options.run, minutes=options.minutes, resume=resume, fabric=fabric
        ):
            log.info("written: %s", path)


def _decoded(folders: Sequence[str], run: Path, recipe: Recipe) -> PictureCache:
    sources, scale = [parse_source(text) for text in folders], recipe.generator.scale
    return build_cache(sources, run.parent / "cache", scale, max_bad_share=recipe.data.max_bad_share)
