"""The game for any main network: what makes an SRGAN of an SRResNet, done to a network of your own.

The main network keeps its loss and gets a judge; there is no third network stacked on the two:

    loss = losses.content.weight x main loss + losses.adversarial.weight x adversarial loss
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from srgan.errors import RecipeError, TrainingError, UsageError
from srgan.files import write_atomically
from srgan.training.adversarial import OBJECTIVES
from srgan.training.config import AdversarialStageRecipe, Recipe
from srgan.training.device import adam, sent
from srgan.training.guards import Guards
from srgan.training.journal import Journal
from srgan.training.processes import make_fabric
from srgan.training.run import Average, Health, Players, Position, Scalars, discriminator_optimizer
from srgan.training.trainer import (
    Batch,
    Pace,
    descend,
    discriminator_clip_norm,
    discriminator_step,
    discriminator_steps,
    generator_step,
    pace_of,
    ranked_rightly,
    set_rates,
)

MainLoss = Callable[[Tensor, Tensor], Tensor]  # (what the network made, the real thing) to a scalar
Batches = Iterator[tuple[tuple[Tensor, ...], Tensor]]  # (what the network is called with, the real thing)
Watch = Callable[[str, int, dict[str, float], list[str]], None]  # stage, step, scalars, alarms
_PARTS = ("network", "discriminator", "loss", "batches")  # what a module of your own must have


def adversarialise(
    network: nn.Module,
    loss: MainLoss,
    batches: Batches,
    discriminator: nn.Module | None,
    recipe: Recipe,
    watch: Watch | None = None,
) -> nn.Module:
    """Train `network` in place, on its main loss and then against `discriminator`, and return it in eval mode.

    `batches`: without end. `discriminator`: maps what `network` makes, (N,...), to logits (N,1) or a map of them;
    for BEGAN to its own attempt at the same. None where `recipe.adversarial.steps` is 0. Of `recipe` these are
    read: seed, precision, objective, losses.content.weight (of the main loss), losses.adversarial, log_steps,
    guards, and of both stages steps, rates, betas, clip_norm and the like. `watch`: called every `log_steps`.
    Networks and batches are put on the device of `make_fabric`. Raises TrainingError where gradients are not
    finite for `guards.bad_steps` in a row.
    """
    fabric = make_fabric(recipe)
    network.to(fabric.device).train()
    judge = nn.Linear(1, 1) if discriminator is None else discriminator  # without a game a token one
    judge.to(fabric.device).train()
    random = torch.Generator().manual_seed(recipe.seed)
    objective = OBJECTIVES[recipe.objective](recipe.losses.adversarial, random)
    for name, stage in recipe.stages().items():
        players = Players(
            fabric=fabric,
            generator=cast(Any, network),
            ema=Average(network, stage.ema_decay),
            discriminator=judge,
            objective=objective,
            generator_optimizer=adam(network, stage.learning_rate, stage.betas),
            discriminator_optimizer=discriminator_optimizer(judge, recipe.adversarial),
        )
        _play(players, recipe, name, loss, batches, watch)
    return network.eval()


def play_module(recipe: Recipe, data: Sequence[str], folder: Path) -> Path:
    """Play for the module that `recipe.main_network` names and return the weights that were written to `folder`.

    The module has the functions `network()`, `discriminator(objective)`, `loss(made, real)` and
    `batches(data, random)`, as `adversarialise` takes them, and may have `sheet(network)`, a picture (H,W,3) uint8
    of what the network makes. Raises RecipeError if it cannot be had, UsageError if the folder holds a run.
    """
    module = load_module(recipe.main_network)
    if (folder / "metrics.jsonl").exists():
        raise UsageError(f"{folder} already holds a run: choose another --run")
    torch.manual_seed(recipe.seed)
    network, judge = module.network(), module.discriminator(recipe.objective)
    batches = module.batches(data, torch.Generator().manual_seed(recipe.seed))
    began_s = time.monotonic()
    with Journal(folder, recipe, speaks=True, since=((next(iter(recipe.stages())),), 0)) as journal:

        def watch(stage: str, step: int, scalars: dict[str, float], alarms: list[str]) -> None:
            elapsed_s = time.monotonic() - began_s
            journal.write(stage, step, elapsed_s, None, scalars)
            for alarm in alarms:
                journal.alarm(stage, step, elapsed_s, alarm)

        adversarialise(network, module.loss, batches, judge, recipe, watch)
        name, stage = list(recipe.stages().items())[-1]
        if hasattr(module, "sheet"):
            journal.sample(name, stage.steps, module.sheet(network))
    path = folder / f"{stage.export_name}.safetensors"
    write_atomically(path, save({key: value.contiguous() for key, value in network.state_dict().items()}))
    return path


def load_module(name: str) -> ModuleType:
    """Return the module that is called `name`, a dotted name or a .py file. Its code is run.

    Raises RecipeError if there is none, or one of its functions is missing.
    """
    try:
        if name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(name).stem, name)
            if spec is None or spec.loader is None:
                raise ImportError("it is no Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise RecipeError(f"main_network {name!r} cannot be loaded: {error}") from error
    missing = [part for part in _PARTS if not callable(getattr(module, part, None))]
    if missing:
        raise RecipeError(f"main_network {name!r} has no {' and no '.join(missing)}")
    return module


def _play(
    players: Players, recipe: Recipe, name: str, loss: MainLoss, batches: Batches, watch: Watch | None
) -> None:
    stage, guards, position = recipe.stages()[name], Guards(recipe.guards), Position(name)
    health = Health(players.fabric.device)
    for step in range(stage.steps):
        position.step, measure = step, (step + 1) % recipe.log_steps == 0
        pace = pace_of(stage, position, step / stage.steps, by_clock=False)
        set_rates(players, position, pace)
        if isinstance(stage, AdversarialStageRecipe):
            terms = _game_step(players, recipe, position, pace, loss, batches, measure=measure)
        else:
            made, real = _made(players, batches)
            main = loss(made, real)
            norm = descend(players.fabric, players.generator, players.generator_optimizer, main, stage.clip_norm)
            terms = {"content": main.detach(), "gradient_norm": norm}
        position.moved += not pace.alone
        health.note(terms)
        if measure:
            bad_steps, _ = health.worst().tolist()
            if why := guards.went_bad(bad_steps, 0.0, lambda: True):
                raise TrainingError(f"{name} step {step + 1}: {why}; lower {name}.learning_rate")
            scalars = {key: float(value) for key, value in terms.items()}
            alarms = guards.watch(position, scalars, recipe.log_steps, players)
            guards.balance(position, scalars, recipe.losses.adversarial)
            if watch is not None:
                watch(name, step + 1, scalars, alarms)


def _game_step(
    players: Players,
    recipe: Recipe,
    position: Position,
    pace: Pace,
    loss: MainLoss,
    batches: Batches,
    *,
    measure: bool,
) -> Scalars:
    stage, rules = recipe.adversarial, recipe.losses.adversarial
    for left in reversed(range(discriminator_steps(recipe))):
        with torch.set_grad_enabled(not left and not pace.alone):
            made, real = _made(players, batches)
        terms = discriminator_step(players, real, made, discriminator_clip_norm(stage))
    if measure:
        with torch.no_grad():
            terms["discriminator_accuracy"] = ranked_rightly(players, real, made.detach())
    if pace.alone:
        return terms
    adversarial = rules.weight * pace.ramp * position.adversarial_scale
    terms["adversarial_weight"] = torch.tensor(adversarial)
    return terms | generator_step(
        players,
        {"content": lambda drawn, truth, _: loss(drawn, truth)},
        {"content": recipe.losses.content.weight, "adversarial": adversarial},
        Batch(real, real, made),
        stage.clip_norm,
        measure=measure,
    )


def _made(players: Players, batches: Batches) -> tuple[Tensor, Tensor]:
    inputs, real = next(batches)
    device = players.fabric.device
    with players.fabric.autocast():
        made = players.generator(*(sent(value, device) for value in inputs))
    return made.float(), sent(real, device)
