"""A training run: who learns, where they stand, what the time is, and all that is kept of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from srgan.conversion.exporting import export_generator
from srgan.errors import TrainingError, UsageError, WeightsError
from srgan.evaluation.measures import LOGGED, MEASURES, YARDSTICK
from srgan.networks import reading, tails
from srgan.networks.generator import STEPS, Generator
from srgan.texts import duration
from srgan.training import checkpoint
from srgan.training.adversarial import OBJECTIVES, Objective
from srgan.training.config import STAGES, AdversarialStageRecipe, Recipe, StageRecipe, validated
from srgan.training.data.cache import PictureCache, split
from srgan.training.device import adam, restore
from srgan.training.discriminators import DISCRIMINATORS
from srgan.training.guards import Guards
from srgan.training.journal import Journal
from srgan.training.processes import agreed, averaged, device_name, precision_of
from srgan.training.validation import JUDGED_BY, Bicubic, cost, sample_strip, validate
from srgan.weights import ModelMetadata, bundled_tensors, is_file_name

log = logging.getLogger(__name__)

Scalars = dict[str, Tensor]  # by name
Resume = bool | Literal["changed"]

# Sections and keys that make a run another one. (What networks, objective and seed are is never to change.)
_GRAVE = ("losses.", "pretrain.content", "degradation.", "data.held_out", "data.split_seed", "held_out")
_MOST_STEPS_ALONE = 100  # of several processes, between two agreements about the time
# The least differences of figures that anyone reads.
_NOTICED = {"psnr_y": 0.01, "ssim_y": 0.0005, "lpips": 0.0005}


class Run:
    """A training run: what `train` moves, and what is done with the whole of it.

    `cache`: all pictures, of which `training` are learnt from and `held_out` are judged by. `folder`: for
    checkpoints, `metrics.jsonl`, samples and exports. `patch_random`: where patches come from, a CPU generator of
    this process. `clock`, `journal`, `guards`, `players`, `position`: see there. `scores`: of the last look.
    `stages`: how far each came. `health`: of the last steps.

    Opening one removes what a killed process left half-written. `resume`: everything is as the last intact
    checkpoint has it, and what was written after it is removed; "changed": though losses, degradation or pictures
    to judge by have changed. Raises UsageError if the folder holds a run and `resume` is not set, or if something
    has changed that has not been told; WeightsError if its checkpoint does not fit; TrainingError if it cannot be
    written to.
    """

    def __init__(
        self,
        recipe: Recipe,
        cache: PictureCache,
        folder: Path,
        clock: Clock,
        *,
        resume: Resume = False,
    ) -> None:
        self.recipe, self.cache, self.folder, self.fabric = recipe, cache, folder, clock.fabric
        fabric, self.clock = clock.fabric, clock
        if cache.scale != recipe.generator.scale:
            raise UsageError(
                f"the pictures were packed for x{cache.scale}, and the recipe is x{recipe.generator.scale}"
            )
        self.scores: dict[str, float] = {}
        self.stages: dict[str, dict[str, int]] = {}
        self.health = Health(fabric.device)
        self.guards = Guards(recipe.guards)
        torch.manual_seed(recipe.seed)  # the same networks in every process
        self.patch_random, label_random = random_streams(recipe.seed, fabric)
        self.training, self.held_out = split(cache, recipe.data)
        self._judges_sha256 = self.held_out.contents_sha256()
        self.players = make_players(recipe, fabric, label_random, resume=bool(resume))
        self.position = Position()
        if fabric.is_global_zero:
            checkpoint.sweep(folder)
        if resume:
            self._go_on(resume)
        elif checkpoint.checkpoints(folder):
            raise UsageError(
                f"{folder} already holds a run: add --resume to go on with it, or choose another --run"
            )
        begun = STAGES[: STAGES.index(self.position.stage) + 1]
        since = (begun, self.position.step if resume else -1)  # a run that begins has no record yet
        self.journal = Journal(folder, recipe, speaks=fabric.is_global_zero, since=since)
        self.journal.record(self._record())

    def stages_left(self) -> list[str]:
        """Return the stages from the position's on, in their order."""
        at = STAGES.index(self.position.stage)
        return [name for name in self.recipe.stages() if STAGES.index(name) >= at]

    def _go_on(self, resume: Resume) -> None:
        """Load the last intact checkpoint, and remove and tell what does not belong to it."""
        path, state = checkpoint.latest_checkpoint(self.folder)
        self._refuse_other_run(path, state)
        self._refuse_changes(path, state, told=resume == "changed")
        self.load()
        if self.fabric.is_global_zero:
            checkpoint.drop_after(path)
        self.clock.go_on_from(self.position.elapsed_s, state.get("minutes"))
        given = "" if self.clock.minutes is None else f" of {duration(60 * self.clock.minutes)}"
        log.info(
            "going on from %s, %s step %d, after %s%s",
            path,
            self.position.stage,
            self.position.step,
            duration(self.position.elapsed_s),
            given,
        )

    def begin(self, name: str) -> None:
        """Start the stage `name` from the averaged generator; judge that, and write the first checkpoint."""
        yardstick = self.position.yardstick
        begin_stage(self.players, self.recipe.stages()[name])
        self.guards = Guards(self.recipe.guards)
        self.position = Position(name, stage_began_s=self.clock.tick(), yardstick=yardstick)
        if not yardstick:
            self._measure_bicubic()
        self.position.began = self.look()
        self.save()  # a full disk is found now, not in an hour
        checkpoint.latest_checkpoint(self.folder)

    def _measure_bicubic(self) -> None:
        """Record what the generator is to beat, on the same pictures."""
        first, position = self.fabric.is_global_zero, self.position
        scores = validate(Bicubic(self.cache.scale), self.held_out, self.recipe.degradation) if first else {}
        scores = {key.replace(LOGGED, YARDSTICK): value for key, value in scores.items()}
        position.yardstick = self.fabric.broadcast(scores)
        if scores:
            self.journal.write(position.stage, position.step, self.clock.now_s, None, scores)

    def log(self, terms: Scalars, patches_per_s: float, left_s: float) -> None:
        """Record the scalars of the step just done, and what the guards find in them."""
        position, now_s = self.position, self.clock.now_s
        values = torch.stack([value.float().to(self.fabric.device) for value in terms.values()])
        scalars = dict(zip(terms, averaged(self.fabric, values).tolist(), strict=True))
        scalars["patches_per_s"] = patches_per_s
        self.journal.write(position.stage, position.step, now_s, left_s, scalars)
        for alarm in self.guards.watch(position, scalars, self.recipe.log_steps, self.players):
            self.journal.alarm(position.stage, position.step, now_s, alarm)
        self.guards.balance(position, scalars, self.recipe.losses.adversarial)

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
            for alarm in self.guards.judge(scores, position.step, position.stage):
                self.journal.alarm(position.stage, position.step, now_s, alarm)
        self.scores = scores
        if self.guards.is_best(position, scores):
            self.save()  # first, so that the best is never ahead of what a resume knows of
            self.save(best=True)
        return scores

    @property
    def answers_at_once(self) -> bool:
        """Whether `went_bad` may be asked after every step: nothing and nobody is waited for."""
        return self.fabric.device.type == "cpu" and self.fabric.world_size == 1

    def went_bad(self) -> str:
        """Return why the steps since the last such question leave nothing but going back, or "".

        On a GPU the question waits for it, so it is only asked before something is logged or kept.
        """
        bad_steps, error = averaged(self.fabric, self.health.worst()).tolist()
        return self.guards.went_bad(bad_steps, error, self.players.are_finite)

    def roll_back(self, why: str) -> None:
        """Go back to the last checkpoint, at lower learning rates. Raises TrainingError after too many times."""
        now, now_s = self.position, self.clock.now_s
        self.journal.alarm(now.stage, now.step, now_s, f"{why}: rolled back")
        if self.fabric.is_global_zero:  # an error is seen a step later: the checkpoint between the two has it, too
            checkpoint.drop_latest(self.folder, now.stage, now.step - 1)
        self.fabric.barrier()
        self.load()
        self.health = Health(self.fabric.device)
        self.position = after_rollback(self.position, now, self.recipe, now_s, why)

    def export(self) -> list[Path]:
        """Write the stage's best averaged generator, with everything that made it; return the files.

        The last one where no pictures, or no LPIPS, tell which was the best. Of several processes only the first
        does.
        """
        state = self._state()
        if not self.fabric.is_global_zero:
            return []
        best = checkpoint.best_of_stage(self.folder, state)
        generator, metadata = checkpoint.described(best | {"run": state["run"]}, str(self.folder))
        log.info("%s", self._verdict(metadata))
        return list(export_generator(generator, metadata, self.folder))

    def _verdict(self, metadata: ModelMetadata) -> str:
        """Say which step is exported, and how it compares with what the stage began with and with bicubic."""
        position = self.position
        text = f"{metadata.name}: the average at step {metadata.run['best_step']} of {position.step}"
        key = JUDGED_BY[position.stage]
        values = [
            (measured.get(f"{prefix}{key}"), name)
            for measured, prefix, name in (
                (metadata.metrics, LOGGED, ""),
                (position.began, LOGGED, " at step 0"),
                (position.yardstick, YARDSTICK, " of bicubic"),
            )
        ]
        measure = MEASURES[key]
        figures = ", ".join(f"{measure.text(value)}{name}" for value, name in values if value is not None)
        return f"{text}; {measure.name} {figures}" if figures else text

    def unmoved(self) -> str:
        """Say what is wrong with a stage whose best is no other, or no better, than what it began with, or ""."""
        position, stage = self.position, self.recipe.stages()[self.position.stage]
        changes = [
            abs(self.scores[key] - value) > _NOTICED[key.removeprefix(LOGGED)]
            for key, value in position.began.items()
            if key.removeprefix(LOGGED) in _NOTICED and key in self.scores
        ]
        if changes and not any(changes):
            return (
                f"the generator hardly moved, so {stage.export_name} draws what the stage began with: give it "
                "more time or steps, or a higher learning rate"
            )
        before = cost(position.began, position.stage)
        if before is not None and position.best >= before:
            name = MEASURES[JUDGED_BY[position.stage]].name
            return f"the stage did not get better than it began, by {name}: {stage.export_name} is no gain"
        return ""

    def save(self, *, best: bool = False) -> None:
        """Write everything that `load` needs, as a numbered checkpoint or as the best of its stage."""
        position = self.position
        position.elapsed_s = self.clock.now_s
        state = self._state()
        if self.fabric.is_global_zero:
            number, step = STAGES.index(position.stage), None if best else position.step
            path = checkpoint.checkpoint_path(self.folder, number, position.stage, step)
            checkpoint.save_checkpoint(path, state)
            checkpoint.prune(self.folder, self.recipe.keep_checkpoints)
        if not best:
            self.journal.record(state["run"])
        self.fabric.barrier()

    def _state(self) -> dict[str, Any]:
        position, players = self.position, self.players
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "data_sha256": self.cache.sha256,
            "held_out": self._held_out(),
            "minutes": self.clock.minutes,
            "scores": self.scores,
            "run": self._record(),
            "position": asdict(position),
            "generator": players.generator.state_dict(),
            "ema": players.ema.state_dict(),
            "discriminator": players.discriminator.state_dict(),
            "objective": players.objective.state_dict(),
            "guards": self.guards.state_dict(),
            "generator_optimizer": players.generator_optimizer.state_dict(),
            "discriminator_optimizer": players.discriminator_optimizer.state_dict(),
            # One row for each process. No step draws from torch's global stream, so it is not kept.
            "patch_random": self._of_all_processes(self.patch_random.get_state()),
            "label_random": self._of_all_processes(players.objective.random.get_state()),
        }

    def _record(self) -> dict[str, Any]:
        """Return what the recipe does not say: on what, with what and how far it was trained."""
        position = self.position
        self.stages[position.stage] = {"steps": position.step, "best_step": position.best_step}
        return {
            "minutes": self.clock.minutes,
            "stages": {name: dict(done) for name, done in self.stages.items()},
            "precision": precision_of(self.recipe),
            "device": device_name(self.fabric.device),
            "processes": self.fabric.world_size,
            "versions": {name: version(name) for name in ("srgan", "torch", "lightning")},
            "data": list(self.cache.folders),
            "data_sha256": self.cache.sha256,
            "training_pictures": len(self.training),
            "validation": [] if self.cache.validation is None else list(self.cache.validation.folders),
            "held_out": self.held_out.names,
            "held_out_pictures": len(self.held_out),
            "held_out_sha256": self._judges_sha256,
        }

    def _held_out(self) -> dict[str, Any]:
        """Which pictures judge the run; equal to a checkpoint's only if they are the same ones."""
        source = self.cache.validation or self.cache
        return {"names": self.held_out.names, "sha256": source.sha256}

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
            self.guards.load_state_dict(state.get("guards", {}))
            for name in ("generator_optimizer", "discriminator_optimizer"):
                restore(getattr(players, name), state[name])
            # Cloned, because torch reads the state from the beginning of the storage, whatever row it is given.
            self.patch_random.set_state(state["patch_random"][rank].clone())
            players.objective.random.set_state(state["label_random"][rank].clone())
            self.position = Position(**state["position"])
            self.scores = state.get("scores", {})
            self.stages = state.get("run", {}).get("stages", {})
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path} lacks a part of the training state ({error})") from error
        stage = self.recipe.stages().get(self.position.stage)  # None: the recipe leaves it out by now
        if stage:  # the average's decay is its stage's, so it is not part of any state
            players.ema.decay = stage.ema_decay
        self._know_the_best()

    def _know_the_best(self) -> None:
        """Make what the position says of the best true of the file: a kill may have come between the two."""
        position = self.position
        kept = checkpoint.best_checkpoint(self.folder, STAGES.index(position.stage), position.stage)
        if kept is not None:
            position.best, position.best_step = kept["position"]["best"], kept["position"].get("best_step", 0)
        elif position.best_step and position.best_step == position.step:
            self.save(best=True)
        else:
            position.best, position.best_step = math.inf, 0

    def _refuse_changes(self, path: Path, state: dict[str, Any], *, told: bool) -> None:
        """Refuse what would make one record of two different runs, unless it was told; name all that changed."""
        values = state["recipe"]
        values.setdefault("data", {}).setdefault("split_seed", values.get("seed", 0))  # what chose them before
        then, now = (dict(flat(r.model_dump(mode="json"))) for r in (validated(values, str(path)), self.recipe))
        changes = {
            key: f"{key} = {value!r} was {then.get(key)!r}" for key, value in now.items() if then.get(key) != value
        }
        held_out = state.get("held_out")
        if held_out is not None and held_out != self._held_out():
            changes["held_out"] = "the pictures that judge are others"
        grave = [text for key, text in changes.items() if key.startswith(_GRAVE)]
        if grave and not told:
            raise UsageError(
                f"{path}: the run would not be one: {'; '.join(grave)}. Resume it as it was, or add "
                "--allow-changes"
            )
        for text in changes.values():
            log.info("changed since: %s", text)

    def _refuse_other_run(self, path: Path, state: dict[str, Any]) -> None:
        then, now = (r.model_dump(mode="json") for r in (validated(state["recipe"], str(path)), self.recipe))
        scales = then["generator"]["scale"], now["generator"]["scale"]
        if scales[0] != scales[1]:
            raise WeightsError(
                f"{path} is of a x{scales[0]} generator, and the recipe says generator.scale = {scales[1]}: "
                f"resume it as it was, or begin another --run with start={path}"
            )
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
    """Time of a run, over all its sittings, and when it is to stop; the same in all processes of `fabric`.

    `minutes`: to stop by then, None: by steps. `asked_to_stop`: whether this process was. `now_s`: seconds at the
    last `tick`. `stopping`: whether any process had been asked to stop by then.
    """

    def __init__(
        self,
        fabric: Fabric,
        minutes: float | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.now_s, self.stopping = 0.0, False
        self._asked_s, self._steps, self._step_s, self._ask_at = 0.0, 0, 0.0, 1
        self.fabric, self.minutes, self._asked_to_stop = fabric, minutes, asked_to_stop
        self._began_s = time.monotonic()

    def tick(self) -> float:
        """Ask the time, in all processes at once, and return it."""
        self.now_s, self.stopping = agreed(self.fabric, time.monotonic() - self._began_s, self._asked_to_stop())
        self._asked_s, self._steps, self._ask_at = self.now_s, -1, 1  # the next steps may take longer
        return self.now_s

    def pass_step(self) -> float:
        """Return the time before a step, the same in all processes.

        Several are not asked before each, or each would wait for all: about once a second, and in between the
        clock goes on by the pace of the steps before. After a `tick` one step tells the pace anew.
        """
        self._steps += 1  # those that have ended since anyone was asked
        if self._steps < self._ask_at and self.fabric.world_size > 1:
            self.now_s += self._step_s if self._steps else 0.0
            return self.now_s
        before_s, steps = self._asked_s, max(self._steps, 1)
        self._step_s = max(self.tick() - before_s, 0.0) / steps
        self._steps, self._ask_at = 0, max(1, min(_MOST_STEPS_ALONE, int(1 / max(self._step_s, 1e-6))))
        return self.now_s

    def go_on_from(self, elapsed_s: float, minutes: float | None) -> None:
        """Count what earlier sittings took, of the minutes that they had if this one was given none."""
        if self.minutes is None:
            self.minutes = minutes
        self._began_s -= elapsed_s
        self.now_s += elapsed_s
        self._asked_s += elapsed_s


class Health:
    """What the steps since the last question were like, counted on `device`, so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._bad_steps, self._worst, self._error = torch.zeros(3, device=device)

    def note(self, terms: Scalars) -> None:
        """Take the gradient norms of a step, left out if one was not finite, and its error at pixels if any."""
        norms = torch.stack([value for key, value in terms.items() if key.endswith("gradient_norm")])
        # Their sum is not finite if any is not.
        self._bad_steps = torch.where(norms.sum().isfinite(), 0.0, self._bad_steps + 1)
        self._worst = torch.maximum(self._worst, self._bad_steps)
        self._error = terms.pop("pixel_error", self._error)

    def worst(self) -> Tensor:
        """Return (2,): the most bad steps in a row since the last question, and the last step's error."""
        worst, self._worst = self._worst, torch.zeros_like(self._worst)
        return torch.stack([worst, self._error])


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
    moved: int = 0  # steps in which the generator moved
    best: float = math.inf  # lowest `validation.cost` of the stage so far
    best_step: int = 0
    began: dict[str, float] = field(default_factory=dict)  # figures of what the stage began with
    yardstick: dict[str, float] = field(default_factory=dict)  # and of bicubic
    validations_since_best: int = 0
    confident_steps: int = 0  # in a row, with a discriminator that is nearly always right
    adversarial_scale: float = 1.0  # what balance and alarms have multiplied the adversarial weight by


def flat(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings as (dotted name, value)."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def after_rollback(
    then: Position, now: Position, recipe: Recipe, now_s: float, why: str = "gradients are not finite"
) -> Position:
    """Return the position to go on from after a rollback to `then`: slower, and counted. Raises TrainingError."""
    if now.rollbacks >= recipe.guards.rollbacks:
        raise TrainingError(
            f"{now.stage} step {now.step}: after {now.rollbacks} rollbacks it is the same: {why}. The last "
            f"checkpoint is kept; start anew with a lower {now.stage}.learning_rate"
        )
    then.rollbacks = now.rollbacks + 1
    then.rate_scale = now.rate_scale * recipe.guards.rollback_rate
    then.elapsed_s = now_s
    return then


class Average(AveragedModel):
    """The generator's running average; looked at, never trained, its statistics averaged, too.

    It moves by 1 - `decay`, and further at first, or a short run would export mostly what it began with: the decay
    is that of TensorFlow's ExponentialMovingAverage, (1 + n) / (10 + n) at update n, until that reaches `decay`.
    """

    def __init__(self, generator: nn.Module, decay: float) -> None:
        super().__init__(generator, use_buffers=True)
        self.decay = decay
        self.eval()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move towards `model`. Unlike torch's own this counts on the host, and sends nothing to the device."""
        count = int(self.n_averaged)
        decay = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
        move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        move([ours for ours, _ in moving], [theirs.detach() for _, theirs in moving], count)
        for ours, theirs in pairs:
            if not ours.is_floating_point():  # counts of batches
                ours.copy_(theirs)
        self.n_averaged += 1


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


@dataclass
class Players:
    """Everything that learns, with what moves it; `fabric`: the devices and processes that it learns on."""

    fabric: Fabric
    generator: Generator
    ema: Average
    discriminator: nn.Module
    objective: Objective
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer

    def are_finite(self) -> bool:
        """Return whether every weight and running statistic is a number; no checkpoint is read with others."""
        networks = (self.generator, self.ema, self.discriminator)
        tensors = [tensor for network in networks for tensor in network.state_dict().values()]
        ours = torch.stack([tensor.isfinite().all().to(self.fabric.device) for tensor in tensors]).all()
        return bool(averaged(self.fabric, ours.float()) == 1)  # running statistics are each process's own


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
    side = longest.patch_hr_px // generator.scale
    half = precision_of(recipe) != "fp32"
    tails.choose_for_training(generator, fabric.autocast, (longest.batch_size, 3, side, side), half=half)
    average = Average(generator, pretrain.ema_decay)  # a copy of what is not compiled: it sees all sizes
    if recipe.compile:
        generator.compile()
    return Players(
        fabric=fabric,
        generator=generator,
        ema=average,
        discriminator=discriminator,
        objective=OBJECTIVES[recipe.objective](recipe.losses.adversarial, label_random, partial(averaged, fabric)),
        generator_optimizer=adam(generator, pretrain.learning_rate, pretrain.betas),
        discriminator_optimizer=discriminator_optimizer(discriminator, stage),
    )


def discriminator_optimizer(discriminator: nn.Module, stage: AdversarialStageRecipe) -> torch.optim.Optimizer:
    """Return the discriminator's Adam, by its own numbers where it has some, else by the generator's."""
    betas = stage.discriminator_betas or stage.betas
    return adam(discriminator, stage.discriminator_learning_rate, betas)


def _start_from(start: str, generator: Generator, discriminator: nn.Module | None) -> None:
    """Give the players the weights of `recipe.start`: a generator's, or the average and who judged it."""
    path = Path(start)
    if path.suffix.lower() == ".pt":
        state = reading.load_checkpoint(path)
        weights = reading.averaged_weights(state, path)
        _copy(weights, validated(state.get("recipe", {}), start).generator.scale, generator, start)
        if discriminator is not None:
            reading.fill(discriminator, state.get("discriminator", {}), start)
        return
    started, _ = reading.load_generator(path if is_file_name(start) else bundled_tensors(start))
    _copy(started.state_dict(), started.scale, generator, start)


def _copy(weights: dict[str, Tensor], scale: int, generator: Generator, start: str) -> None:
    """Give `generator` the weights of one of `scale`.

    Of another scale than its own: the trunk, and the sub-pixel steps that both begin with. The rest is new, for it
    knows the size that it draws at.
    """
    if scale != generator.scale:
        steps = zip(STEPS[scale], STEPS[generator.scale], strict=False)
        shared = [f"upscale.{step}." for step, (theirs, ours) in enumerate(steps) if theirs == ours]
        ours = generator.state_dict()
        new = [name for name in {**weights, **ours} if name.startswith(("upscale.", "tail."))]
        taken = {
            name: value for name, value in weights.items() if name not in new or name.startswith(tuple(shared))
        }
        weights = {name: value for name, value in ours.items() if name in new} | taken
        log.info("%s is x%d: its trunk is copied, and the tail is new, for x%d", start, scale, generator.scale)
    reading.fill(generator, weights, start)


def begin_stage(players: Players, stage: StageRecipe) -> None:
    """Start `stage` from the averaged generator, with the generator's optimiser and average made anew."""
    players.generator.load_state_dict(players.ema.module.state_dict())
    optimizer = players.generator_optimizer
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["betas"] = stage.betas
    players.ema = Average(players.generator, stage.ema_decay)


def random_streams(seed: int, fabric: Fabric) -> tuple[torch.Generator, torch.Generator]:
    """Return this process's generators for patches and for labels; no two streams share a seed."""
    first = 2 * (seed * 1_000_003 + fabric.global_rank)  # a prime far above any number of processes
    return torch.Generator().manual_seed(first), torch.Generator().manual_seed(first + 1)
