"""The steps and one visible loop: pre-training on the content loss, then the adversarial game."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from srgan.conversion.exporting import export_generator
from srgan.errors import UsageError
from srgan.networks import reading
from srgan.networks.generator import SCALE, Generator
from srgan.training import checkpoint, degradation
from srgan.training.adversarial import OBJECTIVES
from srgan.training.config import AdversarialStageRecipe, LossesRecipe, Recipe, StageRecipe
from srgan.training.data import PictureCache, split
from srgan.training.guards import Guards
from srgan.training.journal import Journal
from srgan.training.losses import (
    CONTENT_LOSSES,
    ArtifactLoss,
    LpipsLoss,
    PerceptualLoss,
    StructureTextureLoss,
)
from srgan.training.patches import Patches
from srgan.training.processes import agreed, asked_to_stop, average_gradients, averaged, make_fabric
from srgan.training.state import (
    STAGES,
    Players,
    Position,
    begin_stage,
    load_state,
    make_players,
    random_streams,
    roll_back,
    save_state,
)
from srgan.training.validation import sample_strip, validate
from srgan.weights import ModelMetadata

Terms = dict[str, Tensor]  # scalars by name
TermFunction = Callable[[Tensor, Tensor, Tensor], Tensor]  # of (sr, hr, lr)
BatchSource = Callable[[], tuple[Tensor, Tensor]]  # a new (lr, hr) at every call
_FINISH_S = 15.0  # kept back from `--minutes` for the last validation, checkpoint and export


def train(
    recipe: Recipe,
    cache: PictureCache,
    run: Path,
    *,
    minutes: float | None = None,
    resume: bool = False,
    fabric: Fabric | None = None,
) -> list[Path]:
    """Train as `recipe` says and return the exported files, `NAME.safetensors` and `NAME.onnx` of each stage.

    `cache`: the training pictures. `run`: folder for checkpoints, `metrics.jsonl`, samples and exports.
    `minutes`: stop by then, the schedules following the clock instead of the step count. `resume`: go on from
    the last intact checkpoint, on the CPU bit for bit as if never stopped (but with `minutes`, where the clock
    decides). `fabric`: devices and processes, already launched; each process draws `batch_size` patches of its
    own, so the effective batch is `batch_size` times the processes. SIGINT and SIGTERM finish the step, write a
    checkpoint and raise KeyboardInterrupt or SystemExit(143). Raises UsageError if `run` already holds a run and
    `resume` is not set, WeightsError if its checkpoint does not fit, TrainingError if the run cannot go on.
    """
    began = time.monotonic()
    fabric = fabric or make_fabric(recipe)
    torch.manual_seed(recipe.seed)  # the same networks in every process
    patch_random, label_random = random_streams(recipe.seed, fabric)
    training, validation = split(cache, recipe.data.held_out, recipe.seed)

    players = make_players(recipe, fabric, label_random, resume=resume)
    if recipe.adversarial.steps:  # a backbone that is missing is found now, not after the pre-training
        generator_terms(recipe.losses, players.ema, fabric.device)
    position = Position()
    save = partial(save_state, recipe, cache, players, patch_random, run, fabric)
    load = partial(load_state, recipe, cache, players, patch_random, run, fabric)
    if fabric.is_global_zero:
        checkpoint.sweep(run)
    if resume:
        position = load()
        began -= position.elapsed_s
    elif checkpoint.checkpoints(run):
        raise UsageError(f"{run} already holds a run: add --resume to go on with it, or choose another --run")

    exported: list[Path] = []
    stages_until_now = STAGES[: STAGES.index(position.stage) + 1]
    journal = Journal(run, recipe, speaks=fabric.is_global_zero, since=(stages_until_now, position.step))
    with asked_to_stop() as stop, journal:
        for name in STAGES[STAGES.index(position.stage) :]:
            stage: StageRecipe = getattr(recipe, name)
            if not stage.steps:
                continue
            if position.stage != name or not resume:
                begin_stage(players, stage)
                position = Position(name, stage_began_s=agreed(fabric, time.monotonic() - began, False)[0])
                save(position)  # a full disk is found now, not in an hour
                checkpoint.latest_checkpoint(run)
            resume = False
            batch = batch_source(recipe, stage, training, fabric, patch_random)
            step = stage_step(name, recipe, players, fabric)
            guards = Guards(recipe.guards)
            ends_s = _stage_end_s(recipe, name, minutes)
            logged_s = saved_s = validated_s = agreed(fabric, time.monotonic() - began, False)[0]

            while True:
                now_s, stopping = agreed(fabric, time.monotonic() - began, stop())
                done = _progress(stage, position, now_s, ends_s)
                if done >= 1 or stopping or guards.out_of_patience(position.validations_since_best):
                    break
                terms = step(batch, position, learning_rate(stage, position.step, done))
                position.step += 1

                norms = [value for key, value in terms.items() if key.endswith("gradient_norm")]
                # Their sum is not finite if any is not.
                if guards.went_bad(torch.stack(norms).sum(), players.are_finite):
                    journal.alarm(name, position.step, now_s, "gradients are not finite: rolled back")
                    position = roll_back(load(), position, recipe, now_s)
                    continue
                journal.progress(name, position.step, done, _left_s(position, now_s, done))
                if position.step % recipe.log_steps == 0:
                    scalars = {key: float(value) for key, value in terms.items()}
                    drawn = recipe.log_steps * stage.batch_size * fabric.world_size
                    scalars["patches_per_s"] = drawn / max(now_s - logged_s, 1e-9)
                    logged_s = now_s
                    journal.write(name, position.step, now_s, _left_s(position, now_s, done), scalars)
                    alarm = guards.watch(position, scalars, recipe.log_steps)
                    if alarm:
                        journal.alarm(name, position.step, now_s, alarm)
                if now_s - validated_s > 60 * recipe.validation_minutes:
                    scores = look(fabric, players.ema.module, validation, recipe, guards, journal, position, now_s)
                    # From its end on: a slow machine must not do nothing but look.
                    validated_s = agreed(fabric, time.monotonic() - began, False)[0]
                    if guards.is_best(position, scores):
                        save(position, best=True)
                if now_s - saved_s > 60 * recipe.checkpoint_minutes:
                    position.elapsed_s = saved_s = now_s
                    save(position)

            position.elapsed_s = time.monotonic() - began
            save(position)
            if stopping:
                raise stop.reason()
            scores = look(
                fabric, players.ema.module, validation, recipe, guards, journal, position, position.elapsed_s
            )
            if guards.is_best(position, scores):
                save(position, best=True)
            if fabric.is_global_zero:
                exported += export_ema(
                    players.ema.module.state_dict(), recipe, stage.export_name, cache.sha256, scores, run
                )
    return exported


def batch_source(
    recipe: Recipe, stage: StageRecipe, cache: PictureCache, fabric: Fabric, random: torch.Generator
) -> BatchSource:
    """Return the stage's `draw_pair`, with LR made as the recipe says."""
    degrade = degradation.make(recipe.degradation, random)
    outer_px = stage.patch_hr_px + 2 * degrade.margin_hr_px
    patches = Patches(cache, outer_px, fabric.device, random, recipe.data.energy_weighting)
    return partial(draw_pair, patches, stage.batch_size, degrade)


def draw_pair(patches: Patches, count: int, degrade: degradation.Degradation) -> tuple[Tensor, Tensor]:
    """Return a new batch: LR (count,3,h,w) and HR (count,3,4h,4w) in [0,1], on the device."""
    return patches.pairs(count, degrade)


def pretrain_step(
    fabric: Fabric,
    players: Players,
    content: Callable[[Tensor, Tensor], Tensor],
    lr: Tensor,
    hr: Tensor,
    clip_norm: float,
) -> Terms:
    """One update of the generator by the content loss alone."""
    with fabric.autocast():
        sr = players.generator(lr)  # (B,3,4h,4w) in [0,1]
        loss = content(sr.float(), hr)
    norm = descend(fabric, players.generator, players.generator_optimizer, loss, clip_norm)
    players.ema.update_parameters(players.generator)
    return {"content": loss.detach(), "gradient_norm": norm}


def discriminator_step(fabric: Fabric, players: Players, hr: Tensor, sr: Tensor, clip_norm: float) -> Terms:
    """One update of the discriminator on real and generated pictures; the generator is not touched."""
    with fabric.autocast():
        loss = players.objective.discriminator_loss(players.discriminator, hr, sr.detach())
    norm = descend(fabric, players.discriminator, players.discriminator_optimizer, loss, clip_norm)
    players.objective.after_discriminator_step(players.discriminator)
    return {"discriminator": loss.detach(), "discriminator_gradient_norm": norm}


def generator_step(
    fabric: Fabric,
    players: Players,
    losses: dict[str, TermFunction],
    weights: dict[str, float],
    lr: Tensor,
    hr: Tensor,
    sr: Tensor,
    clip_norm: float,
    *,
    measure: bool = False,
) -> Terms:
    """One update of the generator by the weighted sum of its terms; the discriminator is not touched.

    `losses`: the terms beside the adversarial one. `weights`: one for each term, "adversarial" included. `sr`:
    the generator's output for `lr`, with its graph. `measure`: also return each weighted term's gradient norm
    with respect to SR, the balance that the weights really strike.
    """
    with frozen(players.discriminator):
        with fabric.autocast():
            terms = {name: loss(sr, hr, lr) for name, loss in losses.items()}
            terms["adversarial"] = players.objective.generator_loss(players.discriminator, hr, sr)
        measured = gradient_norms(terms, weights, sr) if measure else {}
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        norm = descend(fabric, players.generator, players.generator_optimizer, total, clip_norm)
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


def gradient_norms(terms: Terms, weights: dict[str, float], sr: Tensor) -> Terms:
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


def learning_rate(stage: StageRecipe, step: int, progress: float) -> float:
    """Linear warm-up over `warmup_steps`, full until `hold`, then half a cosine to the floor at progress 1."""
    full, floor = stage.learning_rate, stage.final_learning_rate
    if step < stage.warmup_steps:
        return full * (step + 1) / stage.warmup_steps
    if progress <= stage.hold:
        return full
    fallen = min(1.0, (progress - stage.hold) / (1 - stage.hold))
    return floor + (full - floor) * (1 + math.cos(math.pi * fallen)) / 2


def stage_step(
    name: str, recipe: Recipe, players: Players, fabric: Fabric
) -> Callable[[BatchSource, Position, float], Terms]:
    """Return the stage's step as a function of (source of batches, position, learning rate)."""
    if name == "pretrain":
        content = CONTENT_LOSSES[recipe.pretrain.content]

        def pretrain(batch: BatchSource, position: Position, rate: float) -> Terms:
            _set_rate(players.generator_optimizer, rate * position.rate_scale)
            lr, hr = batch()
            terms = pretrain_step(fabric, players, content, lr, hr, recipe.pretrain.clip_norm)
            return terms | {"learning_rate": torch.tensor(rate * position.rate_scale)}

        return pretrain

    stage, losses = recipe.adversarial, recipe.losses
    functions, term_weights = generator_terms(losses, players.ema, fabric.device)

    def adversarial(batch: BatchSource, position: Position, rate: float) -> Terms:
        rate *= position.rate_scale
        _set_rate(players.generator_optimizer, rate)
        share = position.discriminator_rate_scale * rate / stage.learning_rate
        _set_rate(players.discriminator_optimizer, share * stage.discriminator_learning_rate)
        measure = (position.step + 1) % recipe.log_steps == 0
        for _ in range(discriminator_steps(recipe)):
            lr, hr = batch()
            with fabric.autocast():
                sr = players.generator(lr).float()  # (B,3,4h,4w) in [0,1]
            terms = discriminator_step(fabric, players, hr, sr, stage.clip_norm)
        if measure:
            terms["discriminator_accuracy"] = averaged(fabric, accuracy(players, hr, sr.detach()))
        terms["learning_rate"] = torch.tensor(rate)
        if position.step < stage.discriminator_alone_steps:
            return terms
        weights = term_weights | {"adversarial": losses.adversarial.weight * _ramp(stage, position.step)}
        return terms | generator_step(
            fabric, players, functions, weights, lr, hr, sr, stage.clip_norm, measure=measure
        )

    return adversarial


def generator_terms(
    losses: LossesRecipe, average: nn.Module, device: torch.device
) -> tuple[dict[str, TermFunction], dict[str, float]]:
    """Return the terms beside the adversarial one whose weight is not 0, and their weights, by name."""
    content, perceptual = losses.content, losses.perceptual
    makers: dict[str, tuple[float, Callable[[], TermFunction]]] = {
        "content": (content.weight, lambda: _of_pictures(CONTENT_LOSSES[content.kind])),
        "perceptual": (perceptual.weight, lambda: _of_pictures(PerceptualLoss(perceptual).to(device))),
        "lpips": (losses.lpips, lambda: _of_pictures(LpipsLoss().to(device))),
        "structure_texture": (losses.structure_texture, lambda: _of_pictures(StructureTextureLoss().to(device))),
        "artifact": (losses.artifact, lambda: ArtifactLoss(average)),
    }
    chosen = {name: (weight, make) for name, (weight, make) in makers.items() if weight}
    return {name: make() for name, (_, make) in chosen.items()}, {name: w for name, (w, _) in chosen.items()}


def discriminator_steps(recipe: Recipe) -> int:
    """Return how often the discriminator moves for each step of the generator."""
    return recipe.adversarial.discriminator_steps or OBJECTIVES[recipe.objective].discriminator_steps


def look(
    fabric: Fabric,
    generator: nn.Module,
    cache: PictureCache,
    recipe: Recipe,
    guards: Guards,
    journal: Journal,
    position: Position,
    now_s: float,
) -> dict[str, float]:
    """Validate, record figures, alarms and a sample strip, and return the figures, the same in all processes."""
    # The first process looks for all: the others' running statistics differ, and all must agree on what is best.
    how = recipe.degradation
    scores: dict[str, float] = fabric.broadcast(validate(generator, cache, how) if fabric.is_global_zero else {})
    if scores and fabric.is_global_zero:
        journal.write(position.stage, position.step, now_s, None, scores)
        journal.sample(position.stage, position.step, sample_strip(generator, cache, how))
        for alarm in guards.judge(scores, position.step):
            journal.alarm(position.stage, position.step, now_s, alarm)
    return scores


def export_ema(
    state: dict[str, Any], recipe: Recipe, name: str, data_sha256: str, scores: dict[str, float], folder: Path
) -> tuple[Path, Path]:
    """Write generator weights as `NAME.safetensors` and `NAME.onnx`, with everything that made them."""
    generator, metadata = described(state, recipe, name, data_sha256, scores)
    return export_generator(generator, metadata, folder)


def described(
    state: dict[str, Any], recipe: Recipe, name: str, data_sha256: str, scores: dict[str, float]
) -> tuple[Generator, ModelMetadata]:
    """Return the generator that has the weights `state`, and everything that made them."""
    architecture = recipe.generator.model_dump()
    generator = Generator(**architecture)
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    reading.fill(generator, state, name)
    metadata = ModelMetadata(
        name=name,
        scale=SCALE,
        halo_lr_px=generator.halo_lr_px,
        architecture=architecture,
        recipe=recipe.model_dump(mode="json"),
        data_sha256=data_sha256,
        metrics={key: round(value, 4) for key, value in scores.items()},
    )
    return generator, metadata


def _of_pictures(loss: Callable[[Tensor, Tensor], Tensor]) -> TermFunction:
    return lambda sr, hr, _lr: loss(sr, hr)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _ramp(stage: AdversarialStageRecipe, step: int) -> float:
    since = step - stage.discriminator_alone_steps
    return min(1.0, (since + 1) / stage.ramp_steps) if stage.ramp_steps else 1.0


def _stage_end_s(recipe: Recipe, name: str, minutes: float | None) -> float | None:
    """When, in seconds of the run, stage `name` has used its share of `minutes`."""
    if minutes is None:
        return None
    shares: dict[str, float] = {
        stage: getattr(recipe, stage).time_share for stage in STAGES if getattr(recipe, stage).steps
    }
    until: float = sum(share for stage, share in shares.items() if STAGES.index(stage) <= STAGES.index(name))
    return 60 * minutes * until / sum(shares.values()) - min(_FINISH_S, 6 * minutes)


def _progress(stage: StageRecipe, position: Position, now_s: float, ends_s: float | None) -> float:
    """Share of the stage that is done, by the clock where it has an end, else by steps."""
    if ends_s is None:
        return position.step / stage.steps
    return (now_s - position.stage_began_s) / max(ends_s - position.stage_began_s, 1e-3)


def _left_s(position: Position, now_s: float, done: float) -> float:
    return (now_s - position.stage_began_s) * (1 - done) / max(done, 1e-6)
