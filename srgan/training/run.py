"""A training run: who learns, where they stand, what the time is, and all that is kept of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from srgan.conversion.exporting import export_generator
from srgan.errors import TrainingError, UsageError, WeightsError
from srgan.networks import reading, tails
from srgan.networks.generator import SCALE, Generator
from srgan.training import checkpoint
from srgan.training.adversarial import OBJECTIVES, Objective
from srgan.training.config import STAGES, Recipe, StageRecipe
from srgan.training.data.cache import PictureCache, split
from srgan.training.discriminators import DISCRIMINATORS
from srgan.training.guards import Guards
from srgan.training.journal import Journal
from srgan.training.losses import generator_terms
from srgan.training.processes import agreed, precision_of
from srgan.training.validation import sample_strip, validate
from srgan.weights import bundled_tensors, is_file_name

Scalars = dict[str, Tensor]  # by name


class Run:
    """A training run: what `train` moves, and what is done with the whole of it.

    `cache`: all pictures, of which `training` are learnt from and `held_out` are judged by. `folder`: for
    checkpoints, `metrics.jsonl`, samples and exports. `patch_random`: where patches come from, a CPU generator of
    this process. `clock`, `journal`, `guards`, `players`, `position`: see there.

    Opening one removes what a killed process left half-written. `resume`: everything is as the last intact
    checkpoint has it. `asked_to_stop`: whether this process was. Raises UsageError if the folder holds a run and
    `resume` is not set, WeightsError if its checkpoint does not fit, TrainingError if it cannot be written to.
    """

    def __init__(
        self,
        recipe: Recipe,
        cache: PictureCache,
        folder: Path,
        fabric: Fabric,
        *,
        resume: bool = False,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.recipe, self.cache, self.folder, self.fabric = recipe, cache, folder, fabric
        self.clock = Clock(fabric, asked_to_stop)
        self.guards = Guards(recipe.guards)
        torch.manual_seed(recipe.seed)  # the same networks in every process
        self.patch_random, label_random = random_streams(recipe.seed, fabric)
        self.training, self.held_out = split(cache, recipe.data.held_out, recipe.seed)
        self.players = make_players(recipe, fabric, label_random, resume=resume)
        self.position = Position()
        if "adversarial" in recipe.stages():  # a backbone that is missing is found now, not after the pre-training
            generator_terms(recipe.losses, self.players.ema, fabric.device)
        if fabric.is_global_zero:
            checkpoint.sweep(folder)
        if resume:
            self.load()
            self.clock.go_on_from(self.position.elapsed_s)
        elif checkpoint.checkpoints(folder):
            raise UsageError(
                f"{folder} already holds a run: add --resume to go on with it, or choose another --run"
            )
        begun = STAGES[: STAGES.index(self.position.stage) + 1]
        since = (begun, self.position.step)
        self.journal = Journal(folder, recipe, speaks=fabric.is_global_zero, since=since)

    def stages_left(self) -> list[str]:
        """Return the stages from the position's on, in their order."""
        at = STAGES.index(self.position.stage)
        return [name for name in self.recipe.stages() if STAGES.index(name) >= at]

    def begin(self, name: str) -> None:
        """Start the stage `name` from the averaged generator, and write its first checkpoint."""
        begin_stage(self.players, self.recipe.stages()[name])
        self.guards = Guards(self.recipe.guards)
        self.position = Position(name, stage_began_s=self.clock.tick())
        self.save()  # a full disk is found now, not in an hour
        checkpoint.latest_checkpoint(self.folder)

    def log(self, terms: Scalars, patches_per_s: float, left_s: float) -> None:
        """Record the scalars of the step just done, and what the guards find in them."""
        position, now_s = self.position, self.clock.now_s
        scalars = {key: float(value) for key, value in terms.items()} | {"patches_per_s": patches_per_s}
        self.journal.write(position.stage, position.step, now_s, left_s, scalars)
        alarm = self.guards.watch(position, scalars, self.recipe.log_steps)
        if alarm:
            self.journal.alarm(position.stage, position.step, now_s, alarm)

    def look(self) -> dict[str, float]:
        """Validate the averaged generator and return its figures, the same in all processes.

        Figures, alarms and a sample strip are recorded, and the players saved if they are the stage's best.
        """
        position, generator, how = self.position, self.players.ema.module, self.recipe.degradation
        # The first process looks for all: the others' running statistics differ, and all must agree on the best.
        first = self.fabric.is_global_zero
        scores: dict[str, float] = self.fabric.broadcast(validate(generator, self.held_out, how) if first else {})
        if scores and first:
            now_s = self.clock.now_s
            self.journal.write(position.stage, position.step, now_s, None, scores)
            self.journal.sample(position.stage, position.step, sample_strip(generator, self.held_out, how))
            for alarm in self.guards.judge(scores, position.step):
                self.journal.alarm(position.stage, position.step, now_s, alarm)
        if self.guards.is_best(position, scores):
            self.save(best=True)
        return scores

    def went_bad(self, terms: Scalars) -> bool:
        """Return whether the gradients of the last steps leave nothing but going back; asked after every step."""
        norms = [value for key, value in terms.items() if key.endswith("gradient_norm")]
        # Their sum is not finite if any is not.
        return self.guards.went_bad(torch.stack(norms).sum(), self.players.are_finite)

    def roll_back(self) -> None:
        """Go back to the last checkpoint, at lower learning rates. Raises TrainingError after too many times."""
        now, now_s = self.position, self.clock.now_s
        self.journal.alarm(now.stage, now.step, now_s, "gradients are not finite: rolled back")
        self.load()
        self.position = after_rollback(self.position, now, self.recipe, now_s)

    def export(self, scores: dict[str, float]) -> list[Path]:
        """Write the averaged generator as the stage's export, with everything that made it; return the files.

        Of several processes only the first does.
        """
        if not self.fabric.is_global_zero:
            return []
        name = self.recipe.stages()[self.position.stage].export_name
        weights = self.players.ema.module.state_dict()
        generator, metadata = checkpoint.described(weights, self.recipe, name, self.cache.sha256, scores)
        return list(export_generator(generator, metadata, self.folder))

    def save(self, *, best: bool = False) -> None:
        """Write everything that `load` needs, as a numbered checkpoint or as the best of its stage."""
        position, players = self.position, self.players
        position.elapsed_s = self.clock.now_s
        state = {
            "recipe": self.recipe.model_dump(mode="json"),
            "data_sha256": self.cache.sha256,
            "position": asdict(position),
            "generator": players.generator.state_dict(),
            "ema": players.ema.state_dict(),
            "discriminator": players.discriminator.state_dict(),
            "objective": players.objective.state_dict(),
            "generator_optimizer": players.generator_optimizer.state_dict(),
            "discriminator_optimizer": players.discriminator_optimizer.state_dict(),
            # One row for each process. No step draws from torch's global stream, so it is not kept.
            "patch_random": self._of_all_processes(self.patch_random.get_state()),
            "label_random": self._of_all_processes(players.objective.random.get_state()),
        }
        if self.fabric.is_global_zero:
            number, step = STAGES.index(position.stage), None if best else position.step
            path = checkpoint.checkpoint_path(self.folder, number, position.stage, step)
            checkpoint.save_checkpoint(path, state)
            checkpoint.prune(self.folder, self.recipe.keep_checkpoints)
        self.fabric.barrier()

    def load(self) -> None:
        """Put everything back where the last intact checkpoint left it. Raises WeightsError if it does not fit."""
        path, state = checkpoint.latest_checkpoint(self.folder)
        players, rank = self.players, self.fabric.global_rank
        try:
            self._refuse_other_run(path, state)
            reading.fill(players.generator, state["generator"], str(path))
            reading.fill(players.ema, state["ema"], str(path))
            reading.fill(players.discriminator, state["discriminator"], str(path))
            players.objective.load_state_dict(state["objective"])
            players.generator_optimizer.load_state_dict(state["generator_optimizer"])
            players.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
            # Cloned, because torch reads the state from the beginning of the storage, whatever row it is given.
            self.patch_random.set_state(state["patch_random"][rank].clone())
            players.objective.random.set_state(state["label_random"][rank].clone())
            self.position = Position(**state["position"])
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path} lacks a part of the training state ({error})") from error
        stage = self.recipe.stages().get(self.position.stage)  # None: the recipe leaves it out by now
        if stage:  # the average's decay is its stage's, and a function, so it is not part of any state
            players.ema.multi_avg_fn = _averaging(stage.ema_decay)

    def _refuse_other_run(self, path: Path, state: dict[str, Any]) -> None:
        then, now = state["recipe"], self.recipe.model_dump(mode="json")
        for section in ("generator", "discriminator", "objective", "seed"):
            if now[section] != then[section]:
                raise WeightsError(
                    f"{path} was made with {section} = {then[section]}, the recipe says {now[section]}: "
                    "use the same"
                )
        if state["data_sha256"] != self.cache.sha256:
            raise WeightsError(f"{path} was trained on other pictures: give --data the same folders")
        processes = len(state["patch_random"])
        if processes != self.fabric.world_size:
            raise WeightsError(f"{path} was made by {processes} processes: use as many --devices")

    def _of_all_processes(self, state: Tensor) -> Tensor:
        return torch.stack([self.fabric.broadcast(state, src=rank) for rank in range(self.fabric.world_size)])


class Clock:
    """Time of a run, over all its sittings, and whether it is to stop; the same in all processes.

    `now_s`: seconds at the last `tick`. `stopping`: whether any process had been asked to stop by then.
    """

    def __init__(self, fabric: Fabric, asked_to_stop: Callable[[], bool]) -> None:
        self.now_s, self.stopping = 0.0, False
        self._fabric, self._asked_to_stop = fabric, asked_to_stop
        self._began_s = time.monotonic()

    def tick(self) -> float:
        """Ask the time, in all processes at once, and return it."""
        self.now_s, self.stopping = agreed(self._fabric, time.monotonic() - self._began_s, self._asked_to_stop())
        return self.now_s

    def go_on_from(self, elapsed_s: float) -> None:
        """Count what earlier sittings took."""
        self._began_s -= elapsed_s
        self.now_s += elapsed_s


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


def after_rollback(then: Position, now: Position, recipe: Recipe, now_s: float) -> Position:
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


@dataclass
class Players:
    """Everything that learns, with what moves it; `fabric`: the devices and processes that it learns on."""

    fabric: Fabric
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
    longest = pretrain if pretrain.steps else stage
    side = longest.patch_hr_px // SCALE
    half = precision_of(recipe) != "fp32"
    tails.choose_for_training(generator, fabric.autocast, (longest.batch_size, 3, side, side), half=half)
    return Players(
        fabric=fabric,
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


def _ema_of(generator: nn.Module, decay: float) -> AveragedModel:
    average = AveragedModel(generator, multi_avg_fn=_averaging(decay), use_buffers=True)
    average.eval()  # it is looked at, never trained: its statistics are averaged, too
    return average


def _averaging(decay: float) -> Any:
    return get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
