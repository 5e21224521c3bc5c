"""What a run consists of: the players and the position, made, saved and restored."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from srgan.errors import TrainingError, WeightsError
from srgan.networks import reading
from srgan.networks.generator import Generator
from srgan.training import checkpoint
from srgan.training.adversarial import OBJECTIVES, Objective
from srgan.training.config import Recipe, StageRecipe
from srgan.training.data import PictureCache
from srgan.training.discriminators import DISCRIMINATORS
from srgan.weights import bundled_tensors, is_file_name

STAGES = ("pretrain", "adversarial")


@dataclass
class Players:
    """Everything that learns, with what moves it."""

    generator: Generator
    ema: AveragedModel
    discriminator: nn.Module
    objective: Objective
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer

    def are_finite(self) -> bool:
        """Return whether every weight and running statistic is a number; no checkpoint is read with others."""
        networks = (self.generator, self.ema, self.discriminator)
        return all(
            bool(tensor.isfinite().all()) for network in networks for tensor in network.state_dict().values()
        )


@dataclass
class Position:
    """Where a run stands; the seconds are counted over all its sittings."""

    stage: str = STAGES[0]
    step: int = 0
    elapsed_s: float = 0.0
    stage_began_s: float = 0.0
    rate_scale: float = 1.0  # what rollbacks have multiplied the learning rates by
    discriminator_rate_scale: float = 1.0  # what alarms have multiplied the discriminator's by
    rollbacks: int = 0
    best: float = math.inf  # lowest LPIPS (or minus PSNR) of the stage so far
    validations_since_best: int = 0
    confident_steps: int = 0  # in a row, with a discriminator that is nearly always right


def make_players(
    recipe: Recipe, fabric: Fabric, label_random: torch.Generator, *, resume: bool = False
) -> Players:
    """Build networks, optimisers, EMA and objective; the networks start from `recipe.start` if given.

    `resume`: they are about to be filled from a checkpoint, so what they once started from need not be there.
    """
    generator = Generator(**recipe.generator.model_dump())
    pretrain, stage, judge = recipe.pretrain, recipe.adversarial, recipe.discriminator
    # Without a second stage the discriminator is never used; a token one keeps the checkpoint's shape.
    discriminator = DISCRIMINATORS[judge.kind](
        stage.patch_hr_px, judge.features if stage.steps else 1, judge.normalisation
    )
    if recipe.start and not resume:
        _start_from(recipe.start, generator, discriminator if stage.steps else None)
    for network in (generator, discriminator):
        network.to(fabric.device).to(memory_format=torch.channels_last)
    return Players(
        generator=generator,
        ema=_ema_of(generator, pretrain.ema_decay),
        discriminator=discriminator,
        objective=OBJECTIVES[recipe.objective](recipe.losses.adversarial, label_random),
        generator_optimizer=torch.optim.Adam(
            generator.parameters(), lr=pretrain.learning_rate, betas=pretrain.betas
        ),
        discriminator_optimizer=torch.optim.Adam(
            discriminator.parameters(), lr=stage.discriminator_learning_rate, betas=stage.betas
        ),
    )


def _start_from(start: str, generator: Generator, discriminator: nn.Module | None) -> None:
    """Give the players the weights of `recipe.start`: a generator's, or the average and who judged it."""
    path = Path(start)
    if path.suffix.lower() == ".pt":
        state = reading.load_checkpoint(path)
        reading.fill(generator, reading.averaged_weights(state, path), start)
        if discriminator is not None:
            reading.fill(discriminator, state.get("discriminator", {}), start)
        return
    started, _ = reading.load_generator(path if is_file_name(start) else bundled_tensors(start))
    reading.fill(generator, started.state_dict(), start)


def begin_stage(players: Players, stage: StageRecipe) -> None:
    """Start `stage` from the averaged generator, with the generator's optimiser and average made anew."""
    players.generator.load_state_dict(players.ema.module.state_dict())
    optimizer = players.generator_optimizer
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["betas"] = stage.betas
    players.ema = _ema_of(players.generator, stage.ema_decay)


def random_streams(seed: int, fabric: Fabric) -> tuple[torch.Generator, torch.Generator]:
    """Return this process's generators for patches and for labels; no two streams share a seed."""
    first = 2 * (seed * 1_000_003 + fabric.global_rank)  # a prime far above any number of processes
    return torch.Generator().manual_seed(first), torch.Generator().manual_seed(first + 1)


def save_state(
    recipe: Recipe,
    cache: PictureCache,
    players: Players,
    patch_random: torch.Generator,
    run: Path,
    fabric: Fabric,
    position: Position,
    *,
    best: bool = False,
) -> None:
    """Write everything that `load_state` needs, as a numbered checkpoint or as the best of its stage."""
    state = {
        "recipe": recipe.model_dump(mode="json"),
        "data_sha256": cache.sha256,
        "position": asdict(position),
        "generator": players.generator.state_dict(),
        "ema": players.ema.state_dict(),
        "discriminator": players.discriminator.state_dict(),
        "objective": players.objective.state_dict(),
        "generator_optimizer": players.generator_optimizer.state_dict(),
        "discriminator_optimizer": players.discriminator_optimizer.state_dict(),
        # One row for each process. No step draws from torch's global stream, so it is not kept.
        "patch_random": _gathered(fabric, patch_random.get_state()),
        "label_random": _gathered(fabric, players.objective.random.get_state()),
    }
    if fabric.is_global_zero:
        number, step = STAGES.index(position.stage), None if best else position.step
        checkpoint.save_checkpoint(checkpoint.checkpoint_path(run, number, position.stage, step), state)
        checkpoint.prune(run, recipe.keep_checkpoints)
    fabric.barrier()


def load_state(
    recipe: Recipe, cache: PictureCache, players: Players, patch_random: torch.Generator, run: Path, fabric: Fabric
) -> Position:
    """Put everything back where the last intact checkpoint left it. Raises WeightsError if it does not fit."""
    path, state = checkpoint.latest_checkpoint(run)
    try:
        _refuse_other_run(path, state, recipe, cache, fabric)
        reading.fill(players.generator, state["generator"], str(path))
        reading.fill(players.ema, state["ema"], str(path))
        reading.fill(players.discriminator, state["discriminator"], str(path))
        players.objective.load_state_dict(state["objective"])
        players.generator_optimizer.load_state_dict(state["generator_optimizer"])
        players.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        # Cloned, because torch reads the state from the beginning of the storage, whatever row it is given.
        patch_random.set_state(state["patch_random"][fabric.global_rank].clone())
        players.objective.random.set_state(state["label_random"][fabric.global_rank].clone())
        position = Position(**state["position"])
        # The average's decay is its stage's, and a function, so it is not part of any state.
        players.ema.multi_avg_fn = _averaging(getattr(recipe, position.stage).ema_decay)
        return position
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} lacks a part of the training state ({error})") from error


def roll_back(then: Position, now: Position, recipe: Recipe, now_s: float) -> Position:
    """Return the position to go on from after a rollback to `then`: slower, and counted. Raises TrainingError."""
    if now.rollbacks >= recipe.guards.rollbacks:
        raise TrainingError(
            f"{now.stage} step {now.step}: gradients stay non-finite after {now.rollbacks} rollbacks. The last "
            f"checkpoint is kept; start anew with a lower {now.stage}.learning_rate"
        )
    then.rollbacks = now.rollbacks + 1
    then.rate_scale = now.rate_scale * recipe.guards.rollback_rate
    then.elapsed_s = now_s
    return then


def _refuse_other_run(
    path: Path, state: dict[str, Any], recipe: Recipe, cache: PictureCache, fabric: Fabric
) -> None:
    now = recipe.model_dump(mode="json")
    for section in ("generator", "discriminator", "objective", "seed"):
        if now[section] != state["recipe"][section]:
            raise WeightsError(
                f"{path} was made with {section} = {state['recipe'][section]}, the recipe says {now[section]}: "
                "use the same"
            )
    if state["data_sha256"] != cache.sha256:
        raise WeightsError(f"{path} was trained on other pictures: give --data the same folders")
    if len(state["patch_random"]) != fabric.world_size:
        raise WeightsError(f"{path} was made by {len(state['patch_random'])} processes: use as many --devices")


def _gathered(fabric: Fabric, state: Tensor) -> Tensor:
    return torch.stack([fabric.broadcast(state, src=rank) for rank in range(fabric.world_size)])


def _ema_of(generator: nn.Module, decay: float) -> AveragedModel:
    average = AveragedModel(generator, multi_avg_fn=_averaging(decay), use_buffers=True)
    average.eval()  # it is looked at, never trained: its statistics are averaged, too
    return average


def _averaging(decay: float) -> Any:
    return get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
