"""The visible loop: pre-training on the content loss, then the adversarial game; and the steps that it takes."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from srgan.conversion.exporting import refuse_foreign
from srgan.errors import TrainingError, UsageError
from srgan.interrupts import Interrupt, signals_taken
from srgan.training.adversarial import OBJECTIVES
from srgan.training.config import AdversarialStageRecipe, Recipe, StageRecipe
from srgan.training.data import degradation
from srgan.training.data.cache import PictureCache
from srgan.training.data.patches import Patches
from srgan.training.losses import CONTENT_LOSSES, TermFunction, generator_terms
from srgan.training.processes import average_gradients, averaged, make_fabric
from srgan.training.run import Players, Position, Run, Scalars

BatchSource = Callable[[], tuple[Tensor, Tensor]]  # a new (lr, hr) at every call
Step = Callable[[BatchSource, Position, float], Scalars]  # one generator update at this learning rate
_FINISH_S = 15.0  # kept back from `--minutes` for the last validation, checkpoint and export


def train(
    recipe: Recipe,
    cache: PictureCache,
    folder: Path,
    *,
    minutes: float | None = None,
    resume: bool = False,
    fabric: Fabric | None = None,
) -> list[Path]:
    """Train as `recipe` says and return the exported files, `NAME.safetensors` and `NAME.onnx` of each stage.

    `cache`: the training pictures. `folder`: for checkpoints, `metrics.jsonl`, samples and exports.
    `minutes`: stop by then, the schedules following the clock instead of the step count. `resume`: go on from
    the last intact checkpoint, on the CPU bit for bit as if never stopped (but with `minutes`, where the clock
    decides). `fabric`: devices and processes, already launched; each process draws `batch_size` patches of its
    own, so the effective batch is `batch_size` times the processes. SIGINT and SIGTERM finish the step, write a
    checkpoint and raise KeyboardInterrupt or SystemExit(143). Raises UsageError if `folder` already holds a run
    and `resume` is not set, or a stage has nothing to do; WeightsError if its checkpoint does not fit or a file in
    the way of an export is not by this program; TrainingError if the run cannot go on, or the time of a stage was
    over before its generator moved.
    """
    refuse_idle_stages(recipe, minutes)
    for stage in recipe.stages().values():
        refuse_foreign(folder, stage.export_name)
    interrupt = Interrupt()
    fabric = fabric or make_fabric(recipe)
    run = Run(recipe, cache, folder, fabric, resume=resume, asked_to_stop=interrupt.stop.is_set)
    exported: list[Path] = []
    with signals_taken(interrupt.take), run.journal:
        for name in run.stages_left():
            if not resume or run.position.stage != name:
                run.begin(name)
            train_stage(run, minutes)
            run.save()
            if run.clock.stopping:
                terminated = interrupt.exit_code == 128 + signal.SIGTERM
                raise SystemExit(interrupt.exit_code) if terminated else KeyboardInterrupt
            judge_length(run, minutes)
            exported += run.export(run.look())
    return exported


def train_stage(run: Run, minutes: float | None) -> None:
    """Take steps from where `run` stands until its stage is done or somebody asks it to stop."""
    recipe, clock, name = run.recipe, run.clock, run.position.stage
    stage = recipe.stages()[name]
    draw = batch_source(recipe, stage, run.training, run.fabric.device, run.patch_random)
    take_step = stage_step(name, recipe, run.players)
    ends_s = stage_end_s(recipe, name, minutes)
    logged_s = looked_s = saved_s = clock.tick()

    while True:
        now_s = clock.tick()
        done = progress(stage, run.position, now_s, ends_s)
        if done >= 1 or clock.stopping or run.guards.out_of_patience(run.position.validations_since_best):
            return
        terms = take_step(draw, run.position, learning_rate(stage, run.position.step, done))
        run.position.step += 1

        if run.went_bad(terms):
            run.roll_back()
            continue
        left_s = (now_s - run.position.stage_began_s) * (1 - done) / max(done, 1e-6)
        run.journal.progress(name, run.position.step, done, left_s)
        if run.position.step % recipe.log_steps == 0:
            patches = recipe.log_steps * stage.batch_size * run.fabric.world_size
            run.log(terms, patches / max(now_s - logged_s, 1e-9), left_s)
            logged_s = now_s
        if now_s - looked_s > 60 * recipe.validation_minutes:
            run.look()
            looked_s = clock.tick()  # from its end on: a slow machine must not do nothing but look
        if now_s - saved_s > 60 * recipe.checkpoint_minutes:
            run.save()
            saved_s = now_s


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


def judge_length(run: Run, minutes: float | None) -> None:
    """Alarm if the stage that `run` has ended was too short; raise TrainingError if its generator never moved."""
    position, stage = run.position, run.recipe.stages()[run.position.stage]
    name, alone = position.stage, stage.idle_steps
    if position.step <= alone:
        given = "" if minutes is None else f" in its share of --minutes {minutes:g}"
        raise TrainingError(
            f"{name} took {position.step} steps{given}, and the generator moves after {alone}: "
            f"{stage.export_name} was not written, for it would be what the stage began with. Go on with --resume "
            "and more --minutes"
        )
    ramp = stage.ramp_steps if isinstance(stage, AdversarialStageRecipe) else 0
    first = max(stage.warmup_steps, alone + ramp)
    if position.step < first:
        text = f"the stage was too short: it ended within the {first} steps over which rates and weights grow"
        run.journal.alarm(name, position.step, run.clock.now_s, text)


def learning_rate(stage: StageRecipe, step: int, progress: float) -> float:
    """Linear warm-up over `warmup_steps`, full until `hold`, then half a cosine to the floor at progress 1."""
    full, floor = stage.learning_rate, stage.final_learning_rate
    if step < stage.warmup_steps:
        return full * (step + 1) / stage.warmup_steps
    if progress <= stage.hold:
        return full
    fallen = min(1.0, (progress - stage.hold) / (1 - stage.hold))
    return floor + (full - floor) * (1 + math.cos(math.pi * fallen)) / 2


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
    """Return what draws the stage's batches: LR (B,3,h,w) and HR (B,3,4h,4w) in [0,1], on `device`."""
    degrade = degradation.make(recipe.degradation, random)
    outer_px = stage.patch_hr_px + 2 * degrade.margin_hr_px
    patches = Patches(cache, outer_px, device, random, recipe.data.energy_weighting)
    return partial(patches.pairs, stage.batch_size, degrade)


def stage_step(name: str, recipe: Recipe, players: Players) -> Step:
    """Return the step of the stage `name`, a function of (source of batches, position, learning rate)."""
    return _pretraining(recipe, players) if name == "pretrain" else _game(recipe, players)


def _pretraining(recipe: Recipe, players: Players) -> Step:
    content = CONTENT_LOSSES[recipe.pretrain.content]

    def step(draw: BatchSource, position: Position, rate: float) -> Scalars:
        rate *= position.rate_scale
        _set_rate(players.generator_optimizer, rate)
        lr, hr = draw()
        terms = pretrain_step(players, content, lr, hr, recipe.pretrain.clip_norm)
        return terms | {"learning_rate": torch.tensor(rate)}

    return step


def _game(recipe: Recipe, players: Players) -> Step:
    fabric, stage = players.fabric, recipe.adversarial
    losses, weights = generator_terms(recipe.losses, players.ema, fabric.device)

    def step(draw: BatchSource, position: Position, rate: float) -> Scalars:
        rate *= position.rate_scale
        _set_rate(players.generator_optimizer, rate)
        share = position.discriminator_rate_scale * rate / stage.learning_rate
        _set_rate(players.discriminator_optimizer, share * stage.discriminator_learning_rate)
        measure = (position.step + 1) % recipe.log_steps == 0
        for _ in range(discriminator_steps(recipe)):
            lr, hr = draw()
            with fabric.autocast():
                sr = players.generator(lr).float()  # (B,3,4h,4w) in [0,1]
            terms = discriminator_step(players, hr, sr, stage.clip_norm)
        if measure:
            terms["discriminator_accuracy"] = averaged(fabric, accuracy(players, hr, sr.detach()))
        terms["learning_rate"] = torch.tensor(rate)
        if position.step < stage.discriminator_alone_steps:
            return terms
        adversarial = recipe.losses.adversarial.weight * ramp(stage, position.step)
        now = weights | {"adversarial": adversarial}
        batch = Batch(lr, hr, sr)
        return terms | generator_step(players, losses, now, batch, stage.clip_norm, measure=measure)

    return step


def pretrain_step(
    players: Players, content: Callable[[Tensor, Tensor], Tensor], lr: Tensor, hr: Tensor, clip_norm: float
) -> Scalars:
    """One update of the generator by the content loss alone."""
    with players.fabric.autocast():
        sr = players.generator(lr)  # (B,3,4h,4w) in [0,1]
        loss = content(sr.float(), hr)
    norm = descend(players.fabric, players.generator, players.generator_optimizer, loss, clip_norm)
    players.ema.update_parameters(players.generator)
    return {"content": loss.detach(), "gradient_norm": norm}


def discriminator_step(players: Players, hr: Tensor, sr: Tensor, clip_norm: float) -> Scalars:
    """One update of the discriminator on real and generated pictures; the generator is not touched."""
    with players.fabric.autocast():
        loss = players.objective.discriminator_loss(players.discriminator, hr, sr.detach())
    norm = descend(players.fabric, players.discriminator, players.discriminator_optimizer, loss, clip_norm)
    players.objective.after_discriminator_step(players.discriminator)
    return {"discriminator": loss.detach(), "discriminator_gradient_norm": norm}


class Batch(NamedTuple):
    """LR (B,3,h,w), HR and SR (B,3,4h,4w), in [0,1]; `sr`: the generator's output for `lr`, with its graph."""

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
    with frozen(players.discriminator):
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
    if norm.isfinite():
        optimizer.step()
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


def accuracy(players: Players, hr: Tensor, sr: Tensor) -> Tensor:
    """Return the share of (real, generated) pairs that the discriminator ranks rightly; 0.5 is guessing."""
    players.discriminator.eval()  # so that looking leaves no trace in running statistics
    with torch.no_grad():
        real, fake = (players.objective.scores(players.discriminator, pictures) for pictures in (hr, sr))
    players.discriminator.train()
    return torch.heaviside(real[:, None] - fake[None, :], torch.tensor(0.5, device=real.device)).mean()


def discriminator_steps(recipe: Recipe) -> int:
    """Return how often the discriminator moves for each step of the generator."""
    return recipe.adversarial.discriminator_steps or OBJECTIVES[recipe.objective].discriminator_steps


def ramp(stage: AdversarialStageRecipe, step: int) -> float:
    """Return the share of the adversarial weight at `step`: it grows from where both players move."""
    since = step - stage.discriminator_alone_steps
    return min(1.0, (since + 1) / stage.ramp_steps) if stage.ramp_steps else 1.0


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
