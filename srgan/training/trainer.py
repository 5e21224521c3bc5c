"""Two steps and one visible loop: pre-training on the content loss, then the adversarial game."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from srgan.errors import BackboneError, TrainingError, UsageError, WeightsError
from srgan.evaluation import metrics
from srgan.training import checkpoint, degradation
from srgan.training.adversarial import OBJECTIVES, Objective
from srgan.training.config import AdversarialStageRecipe, Recipe, StageRecipe
from srgan.training.data import Patches, PictureCache, split
from srgan.training.export import export_generator
from srgan.training.losses import CONTENT_LOSSES, ArtifactLoss, PerceptualLoss
from srgan.training.models import DISCRIMINATORS, SCALE, Generator
from srgan.weights import ModelMetadata

log = logging.getLogger(__name__)

Terms = dict[str, Tensor]  # scalars by name
TermFunction = Callable[[Tensor, Tensor, Tensor], Tensor]  # of (sr, hr, lr)
BatchSource = Callable[[], tuple[Tensor, Tensor]]  # a new (lr, hr) at every call
STAGES = ("pretrain", "adversarial")
_FINISH_S = 15.0  # kept back from `--minutes` for the last validation, checkpoint and export


@dataclass
class Players:
    """Everything that learns, with what moves it."""

    generator: nn.Module
    generator_optimizer: torch.optim.Optimizer
    ema: AveragedModel
    discriminator: nn.Module
    discriminator_optimizer: torch.optim.Optimizer
    objective: Objective


@dataclass
class Position:
    """Where a run stands; the seconds are counted over all its sittings."""

    stage: str = STAGES[0]
    step: int = 0
    elapsed_s: float = 0.0
    stage_began_s: float = 0.0


def train(
    recipe: Recipe, cache: PictureCache, run: Path, *, minutes: float | None = None, resume: bool = False
) -> list[Path]:
    """Train as `recipe` says and return the exported files, `NAME.safetensors` and `NAME.onnx` of each stage.

    `cache`: the training pictures. `run`: folder for the checkpoint, `metrics.jsonl` and the exports. `minutes`:
    stop by then, the schedules following the clock instead of the step count. `resume`: go on from
    RUN/checkpoint.pt, on the CPU bit for bit as if never stopped (but with `minutes`, where the clock decides).
    SIGINT and SIGTERM finish the step, write the checkpoint and raise KeyboardInterrupt or SystemExit(143).
    Raises UsageError if `run` already holds a run and `resume` is not set, WeightsError if its checkpoint does
    not fit, TrainingError if a loss is no longer finite.
    """
    began = time.monotonic()
    fabric = Fabric(accelerator="auto", devices=1, precision=_precision(recipe))
    torch.manual_seed(recipe.seed)
    patch_random = torch.Generator().manual_seed(recipe.seed)
    label_random = torch.Generator().manual_seed(recipe.seed + 1)
    training, validation = split(cache, recipe.data.held_out, recipe.seed)

    players = make_players(recipe, fabric, label_random)
    position = Position()
    if resume:
        position = restore(run, recipe, cache, players, patch_random)
        began -= position.elapsed_s
    elif (run / checkpoint.FILE_NAME).exists():
        raise UsageError(f"{run} already holds a run: add --resume to go on with it, or choose another --run")
    run.mkdir(parents=True, exist_ok=True)

    exported: list[Path] = []
    with asked_to_stop() as stop, Journal(run, recipe, resume) as journal:
        for name in STAGES[STAGES.index(position.stage) :]:
            stage: StageRecipe = getattr(recipe, name)
            if not stage.steps:
                continue
            if position.stage != name or not resume:
                begin_stage(players, stage)
                position = Position(name, 0, position.elapsed_s, time.monotonic() - began)
            resume = False
            step = stage_step(name, recipe, players, fabric)
            patches = Patches(
                training, stage.patch_hr_px + 2 * degradation.MARGIN_HR_PX, fabric.device, patch_random
            )
            batch = partial(draw_pair, patches, stage.batch_size)
            ends_s = _stage_end_s(recipe, name, minutes)

            saved_s = validated_s = time.monotonic() - began
            while True:
                now_s = time.monotonic() - began
                done = _progress(stage, position, now_s, ends_s)
                if done >= 1 or stop():
                    break
                rate = learning_rate(stage, position.step, done)
                terms = step(batch, position.step, rate)
                position.step += 1

                if position.step % recipe.log_steps == 0:
                    scalars = {key: float(value) for key, value in terms.items()}
                    journal.write(name, position.step, now_s, done, {"learning_rate": rate, **scalars})
                    if not all(map(math.isfinite, scalars.values())):
                        raise TrainingError(
                            f"{name} step {position.step}: the loss is not finite. The last checkpoint is kept: "
                            f"resume with a lower {name}.learning_rate"
                        )
                if now_s - validated_s > 60 * recipe.validation_minutes:
                    journal.write(name, position.step, now_s, done, validate(players.ema.module, validation))
                    validated_s = now_s
                if now_s - saved_s > 60 * recipe.checkpoint_minutes:
                    position.elapsed_s = saved_s = now_s
                    checkpoint.save_checkpoint(run, state_of(recipe, cache, players, patch_random, position))

            position.elapsed_s = time.monotonic() - began
            checkpoint.save_checkpoint(run, state_of(recipe, cache, players, patch_random, position))
            if stop():
                log.warning("stopped at %s step %d; go on with --resume", name, position.step)
                raise stop.reason()
            scores = validate(players.ema.module, validation)
            journal.write(name, position.step, time.monotonic() - began, 1.0, scores)
            exported += export_stage(players, recipe, name, cache, scores, run)
    return exported


def draw_pair(patches: Patches, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return a new batch: LR (B,3,h,w) and HR (B,3,4h,4w) in [0,1]."""
    return degradation.pair(patches.draw(batch_size))


def pretrain_step(
    fabric: Fabric,
    players: Players,
    content: Callable[[Tensor, Tensor], Tensor],
    lr: Tensor,
    hr: Tensor,
    clip: float,
) -> Terms:
    """One update of the generator by the content loss alone."""
    sr = players.generator(lr)  # (B,3,4h,4w) in [0,1]
    loss = content(sr, hr)
    norm = descend(fabric, players.generator, players.generator_optimizer, loss, clip)
    players.ema.update_parameters(players.generator)
    return {"content": loss.detach(), "gradient_norm": norm}


def discriminator_step(fabric: Fabric, players: Players, hr: Tensor, sr: Tensor, clip: float) -> Terms:
    """One update of the discriminator on real and generated pictures; the generator is not touched."""
    loss = players.objective.discriminator_loss(players.discriminator, hr, sr.detach())
    descend(fabric, players.discriminator, players.discriminator_optimizer, loss, clip)
    players.objective.after_discriminator_step(players.discriminator)
    return {"discriminator": loss.detach()}


def generator_step(
    fabric: Fabric,
    players: Players,
    losses: dict[str, TermFunction],
    weights: dict[str, float],
    lr: Tensor,
    hr: Tensor,
    sr: Tensor,
    clip: float,
    *,
    measure: bool = False,
) -> Terms:
    """One update of the generator by the weighted sum of its terms; the discriminator is not touched.

    `losses`: the terms beside the adversarial one. `weights`: one for each term, "adversarial" included. `sr`:
    the generator's output for `lr`, with its graph. `measure`: also return each weighted term's gradient norm
    with respect to SR, the balance that the weights really strike.
    """
    with frozen(players.discriminator):
        terms = {name: loss(sr, hr, lr) for name, loss in losses.items()}
        terms["adversarial"] = players.objective.generator_loss(players.discriminator, hr, sr)
        measured = gradient_norms(terms, weights, sr) if measure else {}
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        norm = descend(fabric, players.generator, players.generator_optimizer, total, clip)
    players.ema.update_parameters(players.generator)
    return {name: term.detach() for name, term in terms.items()} | measured | {"gradient_norm": norm}


def descend(
    fabric: Fabric, module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float
) -> Tensor:
    """One optimiser step on `loss`, gradients scaled down to the norm `clip` (0: never); returns their norm."""
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    norm = nn.utils.clip_grad_norm_(module.parameters(), clip or math.inf)
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


def make_players(recipe: Recipe, fabric: Fabric, label_random: torch.Generator) -> Players:
    """Build networks, optimisers, EMA and objective; the generator starts from `recipe.start` if given."""
    generator = Generator(**recipe.generator.model_dump())
    if recipe.start:
        started, _ = checkpoint.load_generator(Path(recipe.start))
        checkpoint.fill(generator, started.state_dict(), recipe.start)
    stage = recipe.adversarial
    # Without a second stage the discriminator is never used; a token one keeps the checkpoint's shape.
    kind, features, normalisation = (
        recipe.discriminator.kind,
        recipe.discriminator.features,
        recipe.discriminator.normalisation,
    )
    discriminator = DISCRIMINATORS[kind](stage.patch_hr_px, features if stage.steps else 1, normalisation)
    channels_last: Any = torch.channels_last
    generator, discriminator = (
        generator.to(memory_format=channels_last),
        discriminator.to(memory_format=channels_last),
    )
    pretrain = recipe.pretrain
    fabric_generator, generator_optimizer = fabric.setup(
        generator, torch.optim.Adam(generator.parameters(), lr=pretrain.learning_rate, betas=pretrain.betas)
    )
    fabric_discriminator, discriminator_optimizer = fabric.setup(
        discriminator,
        torch.optim.Adam(discriminator.parameters(), lr=stage.discriminator_learning_rate, betas=stage.betas),
    )
    return Players(
        generator=fabric_generator,
        generator_optimizer=generator_optimizer,
        ema=_ema_of(fabric_generator, pretrain.ema_decay),
        discriminator=fabric_discriminator,
        discriminator_optimizer=discriminator_optimizer,
        objective=OBJECTIVES[recipe.objective](recipe.losses.adversarial, label_random),
    )


def begin_stage(players: Players, stage: StageRecipe) -> None:
    """Start `stage` from the averaged generator, with the generator's optimiser and average made anew."""
    players.generator.load_state_dict(players.ema.module.state_dict())
    optimizer = players.generator_optimizer
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["betas"] = stage.betas
    players.ema = _ema_of(players.generator, stage.ema_decay)


def stage_step(
    name: str, recipe: Recipe, players: Players, fabric: Fabric
) -> Callable[[BatchSource, int, float], Terms]:
    """Return the stage's step as a function of (source of batches, step, learning rate)."""
    if name == "pretrain":
        content = CONTENT_LOSSES[recipe.pretrain.content]

        def pretrain(batch: BatchSource, step: int, rate: float) -> Terms:
            _set_rate(players.generator_optimizer, rate)
            lr, hr = batch()
            return pretrain_step(fabric, players, content, lr, hr, recipe.pretrain.clip_norm)

        return pretrain

    stage, losses = recipe.adversarial, recipe.losses
    functions: dict[str, TermFunction] = {}
    if losses.content.weight:
        functions["content"] = _of_pictures(CONTENT_LOSSES[losses.content.kind])
    if losses.perceptual.weight:
        functions["perceptual"] = _of_pictures(PerceptualLoss(losses.perceptual).to(fabric.device))
    if losses.artifact:
        functions["artifact"] = ArtifactLoss(players.ema)
    term_weights = {
        "content": losses.content.weight,
        "perceptual": losses.perceptual.weight,
        "artifact": losses.artifact,
    }

    def adversarial(batch: BatchSource, step: int, rate: float) -> Terms:
        _set_rate(players.generator_optimizer, rate)
        share = rate / stage.learning_rate
        _set_rate(players.discriminator_optimizer, share * stage.discriminator_learning_rate)
        measure = (step + 1) % recipe.log_steps == 0
        for _ in range(discriminator_steps(recipe)):
            lr, hr = batch()
            sr = players.generator(lr)  # (B,3,4h,4w) in [0,1]
            terms = discriminator_step(fabric, players, hr, sr, stage.clip_norm)
        if measure:
            terms["discriminator_accuracy"] = accuracy(players, hr, sr.detach())
        if step < stage.discriminator_alone_steps:
            return terms
        weights = term_weights | {"adversarial": losses.adversarial.weight * _ramp(stage, step)}
        return terms | generator_step(
            fabric, players, functions, weights, lr, hr, sr, stage.clip_norm, measure=measure
        )

    return adversarial


def discriminator_steps(recipe: Recipe) -> int:
    """Return how often the discriminator moves for each step of the generator."""
    return recipe.adversarial.discriminator_steps or OBJECTIVES[recipe.objective].discriminator_steps


def validate(generator: nn.Module, cache: PictureCache, crop_px: int = 256) -> dict[str, float]:
    """Mean PSNR-Y (dB) and LPIPS of `generator` on the centres of held-out pictures; empty if there are none.

    LPIPS is left out where AlexNet's weights cannot be had.
    """
    rows: list[dict[str, float]] = []
    generator.eval()
    device = next(generator.parameters()).device
    for index in range(len(cache)):
        hr = _centre(cache.picture(index), crop_px)
        lr = degradation.bicubic(hr.permute(2, 0, 1)[None].float().to(device) / 255)
        with torch.inference_mode():
            sr = generator(lr)[0].permute(1, 2, 0).clamp(0, 1).mul(255).round().byte().cpu().numpy()
        rows.append({"validation/psnr_y": metrics.psnr(sr, hr.numpy(), border=SCALE, y_only=True)})
        try:
            rows[-1]["validation/lpips"] = metrics.lpips(sr, hr.numpy())
        except BackboneError as error:
            if index == 0:
                log.info("validation goes without LPIPS: %s", error)
    return {key: float(np.mean([row[key] for row in rows])) for key in (rows[0] if rows else {})}


def export_stage(
    players: Players, recipe: Recipe, name: str, cache: PictureCache, scores: dict[str, float], run: Path
) -> tuple[Path, Path]:
    """Write the averaged generator of a finished stage into `run`."""
    return export_ema(
        {key: value.detach().cpu().clone() for key, value in players.ema.module.state_dict().items()},
        recipe,
        getattr(recipe, name).export_name,
        cache.sha256,
        scores,
        run,
    )


def export_ema(
    state: dict[str, Tensor],
    recipe: Recipe,
    name: str,
    data_sha256: str,
    scores: dict[str, float],
    folder: Path,
) -> tuple[Path, Path]:
    """Write generator weights as `NAME.safetensors` and `NAME.onnx`, with everything that made them."""
    architecture = recipe.generator.model_dump()
    generator = Generator(**architecture)
    checkpoint.fill(generator, state, name)
    metadata = ModelMetadata(
        name=name,
        scale=SCALE,
        halo_lr_px=generator.halo_lr_px,
        architecture=architecture,
        recipe=recipe.model_dump(mode="json"),
        data_sha256=data_sha256,
        metrics={key: round(value, 4) for key, value in scores.items()},
    )
    return export_generator(generator, metadata, folder)


def state_of(
    recipe: Recipe, cache: PictureCache, players: Players, patch_random: torch.Generator, position: Position
) -> dict[str, Any]:
    """Return all that `restore` needs, as tensors, numbers and strings."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "data_sha256": cache.sha256,
        "position": asdict(position),
        "generator": players.generator.state_dict(),
        "generator_optimizer": players.generator_optimizer.state_dict(),
        "ema": players.ema.state_dict(),
        "discriminator": players.discriminator.state_dict(),
        "discriminator_optimizer": players.discriminator_optimizer.state_dict(),
        "objective": players.objective.state_dict(),
        "patch_random": patch_random.get_state(),
        "torch_random": torch.get_rng_state(),
    }


def restore(
    run: Path, recipe: Recipe, cache: PictureCache, players: Players, patch_random: torch.Generator
) -> Position:
    """Put everything back where RUN/checkpoint.pt left it. Raises WeightsError if it does not fit."""
    path = run / checkpoint.FILE_NAME
    state = checkpoint.load_checkpoint(path)
    for section in ("generator", "discriminator", "objective", "seed"):
        now, then = recipe.model_dump(mode="json")[section], state["recipe"][section]
        if now != then:
            raise WeightsError(f"{path} was made with {section} = {then}, the recipe says {now}: use the same")
    if state["data_sha256"] != cache.sha256:
        raise WeightsError(f"{path} was trained on other pictures: give --data the same folders")
    checkpoint.fill(players.generator, state["generator"], str(path))
    players.ema.load_state_dict(state["ema"])
    checkpoint.fill(players.discriminator, state["discriminator"], str(path))
    players.generator_optimizer.load_state_dict(state["generator_optimizer"])
    players.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
    players.objective.load_state_dict(state["objective"])
    patch_random.set_state(state["patch_random"])
    torch.set_rng_state(state["torch_random"])
    return Position(**state["position"])


class Journal:
    """RUN/metrics.jsonl and TensorBoard events, one row a log interval, and a line for the person who waits."""

    def __init__(self, run: Path, recipe: Recipe, resume: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._file = (run / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"))
        if not resume:
            (run / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()

    def write(self, stage: str, step: int, elapsed_s: float, progress: float, scalars: dict[str, float]) -> None:
        """Record `scalars` of `stage` at `step`."""
        row = {"stage": stage, "step": step, "elapsed_s": round(elapsed_s, 1), **scalars}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for key, value in scalars.items():
            self._board.add_scalar(f"{stage}/{key}", value, step)
        left_s = elapsed_s * (1 - progress) / max(progress, 1e-6)
        shown = "  ".join(f"{key} {value:.4g}" for key, value in scalars.items())
        log.info("%s %d  %d%%  %dm left  %s", stage, step, round(100 * progress), round(left_s / 60), shown)


class _Stop:
    """Remembers the first SIGINT or SIGTERM; true once one came. A second one ends the process at once."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> bool:
        return self.signal != 0

    def remember(self, number: int, _frame: object) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def reason(self) -> BaseException:
        return SystemExit(143) if self.signal == signal.SIGTERM else KeyboardInterrupt()


@contextmanager
def asked_to_stop() -> Iterator[_Stop]:
    """Within the block SIGINT and SIGTERM are remembered instead of interrupting a step."""
    stop = _Stop()
    before = {number: signal.signal(number, stop.remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _precision(recipe: Recipe) -> Any:
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def _ema_of(generator: nn.Module, decay: float) -> AveragedModel:
    inner = getattr(generator, "module", generator)  # without Fabric's wrapper
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(inner, multi_avg_fn=average, use_buffers=True)


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


def _centre(picture: Tensor, crop_px: int) -> Tensor:
    height, width = (min(size, crop_px) // SCALE * SCALE for size in picture.shape[:2])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]
