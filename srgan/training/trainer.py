"""The visible loop: pre-training on the content loss, then the adversarial game; and the steps that it takes."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from srgan.conversion.exporting import refuse_foreign
from srgan.errors import TrainingError, UsageError
from srgan.interrupts import Interrupt, signals_taken
from srgan.texts import first_line
from srgan.training.adversarial import OBJECTIVES
from srgan.training.checkpoint import held
from srgan.training.config import AdversarialStageRecipe, Recipe, StageRecipe
from srgan.training.data import degradation
from srgan.training.data.cache import PictureCache
from srgan.training.data.patches import Patches
from srgan.training.device import fastest_convolutions, normalised_once, step_if_finite
from srgan.training.losses import CONTENT_LOSSES, TermFunction, generator_terms
from srgan.training.processes import average_gradients, averaged, make_fabric
from srgan.training.run import Clock, Players, Position, Resume, Run, Scalars, make_players

BatchSource = Callable[[], tuple[Tensor, Tensor]]  # a new (lr, hr) at every call
Step = Callable[[BatchSource, Position, "Pace"], Scalars]  # one generator update at this pace
_FINISH_S = 15.0  # kept back from `--minutes` for the last validation, checkpoint and export
# Share of a stage by the clock after which warm-up and the discriminator's time alone end, whatever their steps.
_BEGINNING = 0.1


def train(
    recipe: Recipe,
    cache: PictureCache,
    folder: Path,
    *,
    minutes: float | None = None,
    resume: Resume = False,
    fabric: Fabric | None = None,
) -> list[Path]:
    """Train as `recipe` says and return the exported files, `NAME.safetensors` and `NAME.onnx` of each stage.

    `cache`: the training pictures, and those that judge. `folder`: for checkpoints, `metrics.jsonl`, samples and
    exports. `minutes`: stop by then, the schedules following the clock instead of the step count. `resume`: go on
    from the last intact checkpoint, on the CPU bit for bit as if never stopped (but with `minutes`, where the
    clock decides; those of the first sitting hold on); "changed": though losses, degradation or the pictures that
    judge are others than they were. `fabric`: devices and processes, already launched; each process draws
    `batch_size` patches of its own, so the effective batch is `batch_size` times the processes. SIGINT and SIGTERM
    finish the step, write a checkpoint and raise KeyboardInterrupt or SystemExit(143). Raises UsageError if
    `folder` already holds a run and `resume` is not set, if another process trains it, or a stage has nothing to
    do; WeightsError if its checkpoint does not fit or a file in the way of an export is not by this program;
    TrainingError if the run cannot go on, or the time of a stage was over before its generator moved.
    """
    refuse_idle_stages(recipe, minutes)
    for stage in recipe.stages().values():
        refuse_foreign(folder, stage.export_name)
    interrupt = Interrupt()
    fabric = fabric or make_fabric(recipe)
    exported: list[Path] = []
    with ExitStack() as stack:
        if not resume or folder.is_dir():
            stack.enter_context(held(folder, fabric))
        run = Run(recipe, cache, folder, Clock(fabric, minutes, interrupt.stop.is_set), resume=resume)
        stack.enter_context(signals_taken(interrupt.take))
        stack.enter_context(run.journal)
        stack.enter_context(fastest_convolutions(searched=True))  # of patches of one size
        rehearse(run)
        for name in run.stages_left():
            if not resume or run.position.stage != name:
                run.begin(name)
            train_stage(run)
            run.save()
            if run.clock.stopping:
                terminated = interrupt.exit_code == 128 + signal.SIGTERM
                raise SystemExit(interrupt.exit_code) if terminated else KeyboardInterrupt
            run.look()
            judge_length(run)
            exported += run.export()
    return exported


def train_stage(run: Run) -> None:
    """Take steps from where `run` stands until its stage is done or somebody asks it to stop."""
    recipe, clock, name = run.recipe, run.clock, run.position.stage
    stage = recipe.stages()[name]
    draw = batch_source(recipe, stage, run.training, run.fabric.device, run.patch_random)
    take_step = stage_step(name, recipe, run.players)
    ends_s = stage_end_s(recipe, name, clock.minutes)
    logged_s = looked_s = saved_s = clock.tick()

    while True:
        now_s = clock.pass_step()
        done = progress(stage, run.position, now_s, ends_s)
        if done >= 1 or clock.stopping or run.guards.out_of_patience(run.position.validations_since_best):
            return
        pace = pace_of(stage, run.position, done, by_clock=ends_s is not None)
        terms = take_step(draw, run.position, pace)
        run.position.moved += not pace.alone
        run.position.step += 1
        run.health.note(terms)

        to_log = run.position.step % recipe.log_steps == 0
        to_look = now_s - looked_s > 60 * recipe.validation_minutes
        to_save = now_s - saved_s > 60 * recipe.checkpoint_minutes
        if to_log or to_look or to_save or run.answers_at_once:
            why = run.went_bad()
            if why:
                run.roll_back(why)
                continue
        left_s = (now_s - run.position.stage_began_s) * (1 - done) / max(done, 1e-6)
        run.journal.progress(name, run.position.step, done, left_s)
        if to_log:
            patches = recipe.log_steps * stage.batch_size * run.fabric.world_size
            run.log(terms, patches / max(now_s - logged_s, 1e-9), left_s)
            logged_s = now_s
        if to_look or to_save:
            paused_s = clock.tick()
            if to_look:
                run.look()
                looked_s = clock.tick()  # from its end on: a slow machine must not do nothing but look
            if to_save:
                run.save()
                saved_s = now_s
            logged_s += clock.tick() - paused_s  # it is the speed of training that is logged


def rehearse(run: Run) -> None:
    """Build all that the stages of `run` still need and take a step of each, with players that are then forgotten.

    So that what is wrong with the last stage is known before the first one. The step is on noise; on CPUs of at
    most two patches, on a GPU of a whole batch, for its memory. Raises UsageError if a step cannot be taken,
    BackboneError for networks that cannot be had.
    """
    recipe, fabric = run.recipe, run.fabric
    for name in run.stages_left():
        stage = recipe.stages()[name]
        batch_source(recipe, stage, run.training, fabric.device, torch.Generator())  # are there such patches?
        count, side = stage.batch_size, stage.patch_hr_px
        count = count if fabric.device.type == "cuda" else min(count, 2)
        with torch.random.fork_rng(devices=[]):
            players = make_players(recipe, fabric, torch.Generator(), resume=True)
            hr = torch.rand(count, 3, side, side, device=fabric.device)
            draw = partial(_same, (degradation.bicubic(hr, recipe.generator.scale), hr))
            step, position = stage_step(name, recipe, players), Position(name, step=recipe.log_steps - 1)
            try:
                step(draw, position, Pace(stage.learning_rate))
            except torch.OutOfMemoryError as error:
                raise UsageError(
                    f"a step of {name} needs more memory than there is: lower {name}.batch_size or "
                    f"{name}.patch_hr_px"
                ) from error
            except (RuntimeError, ValueError) as error:
                raise UsageError(f"a step of {name} cannot be taken: {first_line(error)}") from error


def _same(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def refuse_idle_stages(recipe: Recipe, minutes: float | None) -> None:
    """Raise UsageError if the steps or the `minutes` of a stage cannot move the generator."""
    for name, stage in recipe.stages().items():
        if minutes is None and stage.steps <= stage.idle_steps:
            raise UsageError(
                f"{name}.steps = {stage.steps} leave the generator as it was, for the discriminator is alone for "
                f"{stage.idle_steps}: raise the one, or lower {name}.discriminator_alone_steps"
            )
        ends_s = stage_end_s(recipe, name, minutes)
        if ends_s is not None and ends_s <= 0:
            raise UsageError(
                f"--minutes {minutes:g} leaves no time for the stage {name}: raise it or {name}.time_share"
            )


def judge_length(run: Run) -> None:
    """Alarm if the stage that `run` has ended was too short; raise TrainingError if its generator never moved."""
    position, stage, minutes = run.position, run.recipe.stages()[run.position.stage], run.clock.minutes
    name, alone = position.stage, stage.idle_steps
    if not position.moved:
        given = "" if minutes is None else f" in its share of --minutes {minutes:g}"
        raise TrainingError(
            f"{name} took {position.step} steps{given}, and the generator moves after {alone}: "
            f"{stage.export_name} was not written, for it would be what the stage began with. Go on with --resume "
            "and more --minutes"
        )
    ramp = stage.ramp_steps if isinstance(stage, AdversarialStageRecipe) else 0
    first = max(stage.warmup_steps, alone + ramp)
    texts = [run.unmoved()]
    if position.step < first and minutes is None:
        texts.append(
            f"the stage was too short: it ended within the {first} steps over which rates and weights grow"
        )
    for text in filter(None, texts):
        run.journal.alarm(name, position.step, run.clock.now_s, text)


class Pace(NamedTuple):
    """What is asked of a step: the rates, whether the discriminator is alone, the adversarial weight's share.

    `discriminator_rate`: None leaves it as it was set.
    """

    learning_rate: float
    alone: bool = False
    ramp: float = 1.0
    discriminator_rate: float | None = None


def pace_of(stage: StageRecipe, position: Position, done: float, *, by_clock: bool) -> Pace:
    """Return the pace of the next step. By the clock the beginnings, counted in steps, end in time too."""
    begun = done / _BEGINNING if by_clock else 0.0
    rate = learning_rate(stage, position.step, done, begun)
    if not isinstance(stage, AdversarialStageRecipe):
        return Pace(rate)
    alone = position.step < stage.discriminator_alone_steps and begun < 1
    # The weight grows from where both players move; by the clock, over as long again as the first may be alone.
    grown = max((position.moved + 1) / stage.ramp_steps if stage.ramp_steps else 1.0, begun - 1)
    return Pace(rate, alone, min(1.0, grown), discriminator_rate(stage, position.step, done, begun))


def learning_rate(stage: StageRecipe, step: int, progress: float, begun: float = 0.0) -> float:
    """Linear warm-up over `warmup_steps`, full until `hold`, then half a cosine to the floor at progress 1.

    `begun`: at 1 the warm-up is over, whatever the step. The rate never rises to a floor above it.
    """
    full, floor = stage.learning_rate, min(stage.learning_rate, stage.final_learning_rate)
    if step < stage.warmup_steps and begun < 1:
        return full * max((step + 1) / stage.warmup_steps, begun)
    if progress <= stage.hold:
        return full
    fallen = min(1.0, (progress - stage.hold) / (1 - stage.hold))
    return floor + (full - floor) * (1 + math.cos(math.pi * fallen)) / 2


def discriminator_rate(stage: AdversarialStageRecipe, step: int, progress: float, begun: float = 0.0) -> float:
    """Return the discriminator's rate, by its own schedule where it has one, else by the generator's."""
    full, share = stage.discriminator_learning_rate, stage.final_learning_rate / stage.learning_rate
    own = {
        "learning_rate": full,
        "final_learning_rate": stage.discriminator_final_learning_rate or full * share,
        "hold": stage.discriminator_hold,
        "warmup_steps": stage.discriminator_warmup_steps,
    }
    changes = {key: value for key, value in own.items() if value is not None}
    return learning_rate(stage.model_copy(update=changes), step, progress, begun)


def discriminator_clip_norm(stage: AdversarialStageRecipe) -> float:
    """Return to what length the discriminator's gradients are cut: its own, or the generator's."""
    return stage.clip_norm if stage.discriminator_clip_norm is None else stage.discriminator_clip_norm


def progress(stage: StageRecipe, position: Position, now_s: float, ends_s: float | None) -> float:
    """Return the share of the stage that is done, by the clock where it has an end, else by steps."""
    if ends_s is None:
        return position.step / stage.steps
    length_s = ends_s - position.stage_began_s
    return (now_s - position.stage_began_s) / length_s if length_s > 0 else 1.0


def stage_end_s(recipe: Recipe, name: str, minutes: float | None) -> float | None:
    """Return when, in seconds of the run, stage `name` has used its share of `minutes`; None without a limit."""
    if minutes is None:
        return None
    shares = [stage.time_share for stage in recipe.stages().values()]
    number = list(recipe.stages()).index(name)
    return 60 * minutes * sum(shares[: number + 1]) / sum(shares) - min(_FINISH_S, 6 * minutes)


def batch_source(
    recipe: Recipe, stage: StageRecipe, cache: PictureCache, device: torch.device, random: torch.Generator
) -> BatchSource:
    """Return what draws the stage's batches: LR (B,3,h,w) and HR (B,3,sh,sw) in [0,1], on `device`."""
    degrade = degradation.make(recipe.degradation, random, recipe.generator.scale)
    outer_px = stage.patch_hr_px + 2 * degrade.margin_hr_px
    patches = Patches(cache, outer_px, device, random, recipe.data.energy_weighting)
    return partial(patches.pairs, stage.batch_size, degrade)


def stage_step(name: str, recipe: Recipe, players: Players) -> Step:
    """Return the step of the stage `name`, a function of (source of batches, position, pace)."""
    return _pretraining(recipe, players) if name == "pretrain" else _game(recipe, players)


def _pretraining(recipe: Recipe, players: Players) -> Step:
    content = CONTENT_LOSSES[recipe.pretrain.content]

    def step(draw: BatchSource, position: Position, pace: Pace) -> Scalars:
        rate = set_rates(players, position, pace)
        lr, hr = draw()
        terms = pretrain_step(players, content, lr, hr, recipe.pretrain.clip_norm)
        return terms | {"learning_rate": torch.tensor(rate)}

    return step


def _game(recipe: Recipe, players: Players) -> Step:
    fabric, stage = players.fabric, recipe.adversarial
    losses, weights = generator_terms(recipe.losses, players.ema, fabric.device)

    def step(draw: BatchSource, position: Position, pace: Pace) -> Scalars:
        rate = set_rates(players, position, pace)
        measure = (position.step + 1) % recipe.log_steps == 0
        for left in reversed(range(discriminator_steps(recipe))):
            lr, hr = draw()
            with torch.set_grad_enabled(not left and not pace.alone), fabric.autocast():
                sr = players.generator(lr).float()  # (B,3,sh,sw) in [0,1]
            terms = discriminator_step(players, hr, sr, discriminator_clip_norm(stage))
        terms["pixel_error"] = (sr.detach() - hr).abs().mean()
        terms["learning_rate"] = torch.tensor(rate)
        if not pace.alone:
            adversarial = recipe.losses.adversarial.weight * pace.ramp * position.adversarial_scale
            terms["adversarial_weight"] = torch.tensor(adversarial)
            now = weights | {"adversarial": adversarial}
            terms |= generator_step(players, losses, now, Batch(lr, hr, sr), stage.clip_norm, measure=measure)
        if measure:  # now that no gradient needs the buffers that looking puts back
            terms["discriminator_accuracy"] = averaged(fabric, accuracy(players, draw))
        return terms

    return step


def pretrain_step(
    players: Players, content: Callable[[Tensor, Tensor], Tensor], lr: Tensor, hr: Tensor, clip_norm: float
) -> Scalars:
    """One update of the generator by the content loss alone."""
    with players.fabric.autocast():
        sr = players.generator(lr)  # (B,3,sh,sw) in [0,1]
        loss = content(sr.float(), hr)
    error = (sr.detach().float() - hr).abs().mean()
    norm = descend(players.fabric, players.generator, players.generator_optimizer, loss, clip_norm)
    players.ema.update_parameters(players.generator)
    return {"content": loss.detach(), "gradient_norm": norm, "pixel_error": error}


def discriminator_step(players: Players, hr: Tensor, sr: Tensor, clip_norm: float) -> Scalars:
    """One update of the discriminator on real and generated pictures; the generator is not touched."""
    with normalised_once(players.discriminator), players.fabric.autocast():
        loss = players.objective.discriminator_loss(players.discriminator, hr, sr.detach())
    norm = descend(players.fabric, players.discriminator, players.discriminator_optimizer, loss, clip_norm)
    players.objective.after_discriminator_step(players.discriminator)
    return players.objective.watched | {"discriminator_gradient_norm": norm}


class Batch(NamedTuple):
    """LR (B,3,h,w), HR and SR (B,3,sh,sw), in [0,1]; `sr`: the generator's output for `lr`, with its graph."""

    lr: Tensor
    hr: Tensor
    sr: Tensor


def generator_step(
    players: Players,
    losses: dict[str, TermFunction],
    weights: dict[str, float],
    batch: Batch,
    clip_norm: float,
    *,
    measure: bool = False,
) -> Scalars:
    """One update of the generator by the weighted sum of its terms; the discriminator is not touched.

    `losses`: the terms beside the adversarial one. `weights`: of each term, "adversarial" included. `measure`:
    also return each weighted term's gradient norm with respect to SR, the balance that the weights really strike.
    """
    lr, hr, sr = batch
    with frozen(players.discriminator), normalised_once(players.discriminator):
        with players.fabric.autocast():
            terms = {name: loss(sr, hr, lr) for name, loss in losses.items()}
            terms["adversarial"] = players.objective.generator_loss(players.discriminator, hr, sr)
        measured = gradient_norms(terms, weights, sr) if measure else {}
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        norm = descend(players.fabric, players.generator, players.generator_optimizer, total, clip_norm)
    players.ema.update_parameters(players.generator)
    return {name: term.detach() for name, term in terms.items()} | measured | {"gradient_norm": norm}


def descend(
    fabric: Fabric, module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip_norm: float
) -> Tensor:
    """One optimiser step on `loss`, gradients scaled down to `clip_norm` (0: never); returns their norm.

    Gradients are averaged over the processes. Where they are not finite the step is left out.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    average_gradients(fabric, module)
    norm = nn.utils.clip_grad_norm_(module.parameters(), clip_norm or math.inf)
    step_if_finite(optimizer, norm)
    return norm.detach()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through `module` but none is left in it: the generator's step moves the generator alone."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def gradient_norms(terms: Scalars, weights: dict[str, float], sr: Tensor) -> Scalars:
    """Return the norm of each weighted term's gradient with respect to `sr`, keyed "gradient/TERM"."""
    return {
        f"gradient/{name}": torch.autograd.grad(weights[name] * term, sr, retain_graph=True)[0].norm()
        for name, term in terms.items()
    }


def accuracy(players: Players, draw: BatchSource, batches: int = 4) -> Tensor:
    """Return the share of (real, generated) pairs that the discriminator ranks rightly; 0.5 is guessing.

    Both play as they do in a step, BatchNorm by the batch and in the same precision, on fresh pairs: on those that
    it was just taught by, or by running statistics, the discriminator seems another than it is. Leaves no trace in
    either.
    """
    shares = []
    with (
        torch.no_grad(),
        players.fabric.autocast(),
        untouched(players.generator),
        untouched(players.discriminator),
    ):
        for _ in range(batches):
            lr, hr = draw()
            sr = players.generator(lr).float()
            shares.append(ranked_rightly(players, hr, sr))
    return torch.stack(shares).mean()


def ranked_rightly(players: Players, hr: Tensor, sr: Tensor) -> Tensor:
    """Return the share of all pairs of one of `hr` and one of `sr` that the discriminator ranks rightly."""
    real, fake = (players.objective.scores(players.discriminator, pictures) for pictures in (hr, sr))
    differences = real[:, None] - fake[None, :]
    return ((differences.sign() + 1) / 2).mean()


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Give `module` its buffers back as they were: running statistics, and what spectral norm knows by heart."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in module.named_buffers():
            buffer.copy_(before[name])


def discriminator_steps(recipe: Recipe) -> int:
    """Return how often the discriminator moves for each step of the generator."""
    return recipe.adversarial.discriminator_steps or OBJECTIVES[recipe.objective].discriminator_steps


def set_rates(players: Players, position: Position, pace: Pace) -> float:
    """Give both optimisers the rates of a step, and return the generator's."""
    rate = pace.learning_rate * position.rate_scale
    _set_rate(players.generator_optimizer, rate)
    if pace.discriminator_rate is not None:
        scale = position.discriminator_rate_scale * position.rate_scale
        _set_rate(players.discriminator_optimizer, scale * pace.discriminator_rate)
    return rate


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
