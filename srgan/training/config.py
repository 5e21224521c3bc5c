"""The recipe: every number of a training run, strictly typed, with its reason."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Sequence
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from srgan.errors import RecipeError
from srgan.networks.generator import GeneratorRecipe
from srgan.texts import did_you_mean
from srgan.weights import SCALE_IN_NAME, model_name

log = logging.getLogger(__name__)

STAGES = ("pretrain", "adversarial")  # in their order


# How recipes, and the checkpoints and models that carry one, named a precision before.
_OLD_PRECISIONS = {"32-true": "fp32", "bf16-mixed": "bf16"}

Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, AfterValidator(model_name)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Range = tuple[float, float]
Section = TypeVar("Section", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _filled(section: Section, values: dict[str, Any]) -> Section:
    """Return `section` with `values` in those of its fields that nobody has set."""
    silent = {name: value for name, value in values.items() if name not in section.model_fields_set}
    return section.model_copy(update=silent)


class ObjectiveDefaults(NamedTuple):
    """What an objective has of its own: what it is played with where the recipe is silent.

    `settings`: those of `AdversarialRecipe` that it reads, beside what all read, with its numbers.
    `discriminator`: where it differs from `DiscriminatorRecipe`. `refuses_batch`: why it cannot use BatchNorm;
    empty: it can.
    """

    settings: dict[str, Any]
    discriminator: dict[str, str]
    refuses_batch: str = ""


_BY_PICTURE = "penalties are taken picture by picture"
_NO_NORMALISATION = {"normalisation": "none"}

OBJECTIVE_DEFAULTS = {
    # noisy soft labels, drawn anew for every picture and step (ganhacks 6)
    "nonsaturating": ObjectiveDefaults({"real_labels": (0.7, 1.2), "fake_labels": (0.0, 0.3)}, {}),
    "minimax": ObjectiveDefaults({}, {}),
    "lsgan": ObjectiveDefaults({}, {}),
    # 0.01: Arjovsky et al. 2017, algorithm 1; ten clipped layers, as "vgg" has, let little pass, five enough
    "wgan": ObjectiveDefaults(
        {"clip_weights": 0.01},
        {"kind": "patch", "normalisation": "none"},
        "its gains, clipped like all weights, let nothing pass",
    ),
    # 10: Gulrajani et al. 2017, algorithm 1
    "wgan-gp": ObjectiveDefaults({"gradient_penalty": 10.0}, _NO_NORMALISATION, _BY_PICTURE),
    # plain labels and 10: Kodali et al. 2017, algorithm 1
    "dragan": ObjectiveDefaults(
        {"real_labels": (1.0, 1.0), "fake_labels": (0.0, 0.0), "gradient_penalty": 10.0},
        _NO_NORMALISATION,
        _BY_PICTURE,
    ),
    # Berthelot et al. 2017, figure 3 and section 3.4
    "began": ObjectiveDefaults(
        {"began_gamma": 0.7, "began_gain": 1e-3}, {"kind": "autoencoder", "normalisation": "none"}
    ),
    "relativistic-average": ObjectiveDefaults({}, {}),
    # gamma 1, for a slim discriminator at 128 pixels; the paper has 0.05 to 150, growing with the size
    "relativistic-paired": ObjectiveDefaults({"r1_gamma": 1.0, "r2_gamma": 1.0}, _NO_NORMALISATION),
}


class DiscriminatorRecipe(_Strict):
    """Which of `discriminators.DISCRIMINATORS`, and its keyword arguments beside the patch size.

    Some objectives have a kind and a normalisation of their own: `OBJECTIVE_DEFAULTS`.
    """

    kind: Literal["vgg", "unet", "patch", "autoencoder"] = "vgg"  # Ledig et al. 2017, figure 4
    features: Annotated[int, Field(ge=1, le=512)] = 64  # likewise
    normalisation: Literal["batch", "none", "spectral"] = "batch"  # likewise

    def of(self, objective: str) -> Self:
        """Return this with what `objective` has of its own where nothing was said."""
        return _filled(self, OBJECTIVE_DEFAULTS[objective].discriminator)


class DataRecipe(_Strict):
    """Which pictures serve for what, and which places of them."""

    held_out: Annotated[int, Field(ge=0, le=1000)] = 8  # pictures kept for validation, never trained on
    # Which they are; not `seed`, so that runs of several seeds are judged by the same pictures.
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    # Share of the patches drawn by detail instead of evenly. The paper draws evenly, so off; sky teaches little.
    energy_weighting: Fraction = 0.0
    max_bad_share: Fraction = 0.5  # files left out beyond this share mean the wrong folder, not a few bad files


class PassRecipe(_Strict):
    """One pass of the realistic degradation: blur, resize, noise; the ranges are drawn from evenly.

    Its chances and ranges are milder than those of Wang et al. 2021 (Real-ESRGAN, appendix A), given in brackets:
    they restored films and scans, and a generator of this size that has seen as much gives up texture for safety.
    """

    blur: Fraction = 0.8  # share of pictures blurred (paper: always)
    blur_sigma: Range = (0.2, 2.0)  # pixels (0.2 to 3)
    sinc: Fraction = 0.1  # share of the blurs that ring instead, as sharpened pictures do (0.1)
    anisotropic: Fraction = 0.4  # share of the other blurs with a direction, as a shaking camera gives (about 0.4)
    generalised: Fraction = 0.2  # share of them with heavier or lighter tails than a Gaussian (about 0.2)
    plateau: Fraction = 0.1  # share of them flat in the middle, as a lens out of focus (about 0.2)
    resize: Range = (0.4, 1.2)  # factor on the HR side (0.15 to 1.5); a quarter is all the detail that LR can hold
    noise: Fraction = 0.7  # share of pictures with noise (always)
    gaussian: Fraction = 0.5  # share of the noise that is Gaussian (0.5); the rest is Poisson, growing with light
    gaussian_sigma: Range = (0.5, 8.0)  # grey levels of 255 (1 to 30); 10 is a telephone's picture by night
    poisson_scale: Range = (0.05, 1.0)  # times the noise of 255 photons at white (0.05 to 3)
    grey_noise: Fraction = 0.4  # share of the noise that is the same in all three colours (0.4)


class SecondPassRecipe(PassRecipe):
    """The second pass, weaker than the first; its resize factor is on the LR side."""

    blur: Fraction = 0.5  # (0.8)
    blur_sigma: Range = (0.2, 1.0)  # (0.2 to 1.5)
    resize: Range = (0.6, 1.2)  # (0.3 to 1.2)
    gaussian_sigma: Range = (0.5, 5.0)  # (1 to 25)
    poisson_scale: Range = (0.05, 0.7)  # (0.05 to 2.5)


class DegradationRecipe(_Strict):
    """From HR to LR: the benchmarks' bicubic, or what cameras and the web do to a picture.

    realistic: Wang et al. 2021, "Real-ESRGAN", section 3: two passes with JPEG between them, then JPEG and the
    resize to LR with a sinc filter, in either order.
    """

    kind: Literal["bicubic", "realistic"] = "bicubic"
    first: PassRecipe = PassRecipe()
    second: SecondPassRecipe = SecondPassRecipe()
    second_order: Fraction = 0.5  # share of the draws that take the second pass (always)
    aliased: Fraction = 0.3  # share of the resizes without antialiasing, as in hasty software (always)
    final_sinc: Fraction = 0.3  # share of pictures that ring at the end (0.8)
    jpeg_quality: Range = (40.0, 95.0)  # libjpeg's scale (30 to 95); below 40 the web shows little
    # Shares of the pictures that are met with less than all that, so that they are not smoothed as if they had it
    # (0, 0): the plain bicubic reduction, and that saved once as JPEG, which is what most of the web is.
    clean: Fraction = 0.0  # likewise
    only_jpeg: Fraction = 0.0  # likewise

    @model_validator(mode="after")
    def _ranges_make_sense(self) -> Self:
        ranges = {"jpeg_quality": (self.jpeg_quality, 1.0, 100.0)}
        passes = {"first": self.first, "second": self.second}
        for name, recipe in passes.items():
            ranges[f"{name}.blur_sigma"] = (recipe.blur_sigma, 0.05, 10.0)
            ranges[f"{name}.resize"] = (recipe.resize, 0.1, 4.0)
            ranges[f"{name}.gaussian_sigma"] = (recipe.gaussian_sigma, 0.0, 255.0)
            ranges[f"{name}.poisson_scale"] = (recipe.poisson_scale, 0.0, 10.0)
        for name, ((low, high), least, most) in ranges.items():
            if not least <= low <= high <= most:
                raise ValueError(f"{name} must ascend within {least:g} to {most:g}, not {low:g} to {high:g}")
        for name, recipe in passes.items():
            if recipe.generalised + recipe.plateau > 1:
                raise ValueError(
                    f"{name}.generalised and {name}.plateau are shares of one whole: at most 1 together"
                )
        if self.clean + self.only_jpeg > 1:
            raise ValueError("clean and only_jpeg are shares of one whole: at most 1 together")
        return self


class ContentRecipe(_Strict):
    """Pixel term."""

    kind: Literal["mse", "l1", "charbonnier"] = "mse"  # Ledig et al. 2017, eq. 4
    weight: Weight = 1.0  # the unit that the other weights are in, likewise


class PerceptualRecipe(_Strict):
    """VGG-feature term; Ledig et al. 2017, eq. 5."""

    network: Literal["vgg19", "vgg16"] = "vgg19"
    file: str = ""  # safetensors of `features.*`; empty: SRGAN_BACKBONES, then torchvision's download
    layers: Annotated[dict[str, Positive], Field(min_length=1)] = {"conv5_4": 1.0}  # the paper's best, φ5,4
    after_activation: bool = True  # as the paper defines φ; before it is sharper (Wang et al. 2018)
    kind: Literal["mse", "l1"] = "mse"
    # 0.006 = 1/12.75² belongs to Caffe-scale features; torchvision's are about 6.8 times smaller, so they are
    # multiplied by 6.8 to give the nominal weight the strength that it has in the paper. 1.0 for Caffe weights.
    feature_scale: Positive = 6.8
    weight: Weight = 0.006  # Ledig et al. 2017, section 3.2


class AdversarialRecipe(_Strict):
    """The game's term and its rules. What an objective has of its own, or does not read: `OBJECTIVE_DEFAULTS`."""

    weight: Weight = 1e-3  # Ledig et al. 2017, eq. 3
    # The weight follows, so that the game's gradient at SR stands at this share of the perceptual ones (Esser et
    # al. 2021, eq. 7), within a tenth and ten times `weight`, and only while the discriminator is awake; 0: not.
    pull: Weight = 0.0  # the paper has a fixed weight
    real_labels: Range = (0.7, 1.2)  # nonsaturating, dragan: what the discriminator is taught to say of HR ...
    fake_labels: Range = (0.0, 0.3)  # ... and of SR; drawn anew for every picture and step
    clip_weights: Positive = 0.01  # wgan: of a layer with 2,048 inputs, of others by the root of theirs
    gradient_penalty: Weight = 10.0  # wgan-gp, dragan: of slopes other than 1
    began_gamma: Fraction = 0.7  # began: ratio of the two errors aimed at
    began_gain: Positive = 1e-3  # began: how fast k moves
    # Zero-centred penalties, γ/2 times the squared slope of the discriminator at HR (R1) and at SR (R2), in every
    # objective: Mescheder et al. 2018, eq. 9 and 10. Only relativistic-paired has them by itself.
    r1_gamma: Weight = 0.0  # likewise
    r2_gamma: Weight = 0.0  # likewise
    # A penalty costs a second pass backward, so it is taken at every fourth update, four times as strongly; every
    # 16th is enough for some (Karras et al. 2020, appendix B).
    penalty_steps: Annotated[int, Field(ge=1, le=1000)] = 4

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("real_labels", "fake_labels"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must ascend, not {low} to {high}")
        return self

    def of(self, objective: str) -> Self:
        """Return this with the numbers of `objective` where nothing was said; ValueError for what it never reads.

        A setting that it does not read may stand as this class has it, as in a recipe that was written whole.
        """
        own = OBJECTIVE_DEFAULTS[objective].settings
        for name in sorted(_OF_SOME_OBJECTIVES - own.keys()):
            if getattr(self, name) != type(self).model_fields[name].default:
                readers = [key for key, defaults in OBJECTIVE_DEFAULTS.items() if name in defaults.settings]
                raise ValueError(
                    f"adversarial.{name} is not read by objective {objective!r}, only by {' and '.join(readers)}: "
                    "leave it out"
                )
        return _filled(self, own)


# `r1_gamma` and `r2_gamma` are read by all.
_OF_SOME_OBJECTIVES = {
    "real_labels",
    "fake_labels",
    "clip_weights",
    "gradient_penalty",
    "began_gamma",
    "began_gain",
}


class LossesRecipe(_Strict):
    """Terms of the generator's loss."""

    content: ContentRecipe = ContentRecipe()
    perceptual: PerceptualRecipe = PerceptualRecipe()
    # Not in the paper, so off. A metric that is a loss is no judge any more: then report another one.
    artifact: Weight = 0.0  # weight of the LDL term, Liang et al. 2022
    lpips: Weight = 0.0  # weight of LPIPS (AlexNet), Zhang et al. 2018
    structure_texture: Weight = 0.0  # weight of a DISTS-like term on VGG16, Ding et al. 2020
    adversarial: AdversarialRecipe = AdversarialRecipe()


class StageRecipe(_Strict):
    """What both stages have; the learning rate warms up, holds, then falls on a half cosine to its floor."""

    export_name: Name  # of the files that the stage ends with
    steps: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16  # Ledig et al. 2017, section 3.2
    patch_hr_px: Annotated[int, Field(ge=16, le=1024)] = 96  # likewise, at ×4; a multiple of the scale
    learning_rate: Positive
    final_learning_rate: Positive
    warmup_steps: Annotated[int, Field(ge=0)] = 0  # the paper has none
    hold: Fraction = 0.0  # share of the stage at the full learning rate before it falls
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)  # Adam's own; Ledig et al. 2017 give the first
    clip_norm: Weight = 1.0  # gradients above this norm are scaled down; 0: never
    ema_decay: Fraction = 0.999  # looks back a thousand steps: noise is gone, and little of the progress
    time_share: Positive = 1.0  # of `--minutes`, relative to the other stage

    @property
    def idle_steps(self) -> int:
        """How many steps at the beginning leave the generator as it is."""
        return 0


class PretrainRecipe(StageRecipe):
    """First stage: content loss alone, so that the game starts from good pictures."""

    export_name: Name = "srresnet-x4"
    steps: Annotated[int, Field(ge=0)] = 1_000_000  # Ledig et al. 2017, section 3.2
    learning_rate: Positive = 1e-4  # likewise
    final_learning_rate: Positive = 1e-6  # annealing is worth 0.1 dB at any length
    content: Literal["mse", "l1", "charbonnier"] = "mse"


class AdversarialStageRecipe(StageRecipe):
    """Second stage: the game."""

    export_name: Name = "srgan-x4"
    steps: Annotated[int, Field(ge=0)] = 200_000  # Ledig et al. 2017, section 3.2
    learning_rate: Positive = 1e-4  # likewise, for the first half
    final_learning_rate: Positive = 1e-5  # the paper's second half, reached smoothly
    hold: Fraction = 0.5  # where the paper lowers the rate
    discriminator_learning_rate: Positive = 1e-4  # the generator's, as in the paper
    # Of the discriminator alone; left out, each is the generator's, and its rate falls in the same proportion.
    discriminator_final_learning_rate: Positive | None = None
    discriminator_hold: Fraction | None = None
    discriminator_warmup_steps: Annotated[int, Field(ge=0)] | None = None
    discriminator_betas: tuple[Momentum, Momentum] | None = None
    discriminator_clip_norm: Weight | None = None

    # Steps of the discriminator for each of the generator; 0: the objective's own number.
    discriminator_steps: Annotated[int, Field(ge=0, le=100)] = 0
    discriminator_alone_steps: Annotated[int, Field(ge=0)] = 0  # before the generator moves
    ramp_steps: Annotated[int, Field(ge=0)] = 0  # over which the adversarial weight grows from 0

    @property
    def idle_steps(self) -> int:
        """How many steps the discriminator is alone."""
        return self.discriminator_alone_steps


class GuardsRecipe(_Strict):
    """When a run looks after itself."""

    bad_steps: Annotated[int, Field(ge=1)] = 20  # steps in a row without finite gradients before rolling back
    rollbacks: Annotated[int, Field(ge=0)] = 3  # before giving up
    rollback_rate: Annotated[float, Field(gt=0, lt=1)] = 0.5  # what a rollback multiplies the learning rates by
    accuracy_above: Fraction = 0.95  # a discriminator that is right more often teaches little ...
    accuracy_steps: Annotated[int, Field(ge=1)] = 1000  # ... and after so many such steps an alarm is raised
    # A game that is none: what was logged looks so for this many steps in a row.
    asleep_steps: Annotated[int, Field(ge=1)] = 300  # a discriminator wakes within 100 to 350 steps, or never
    # A loss that stays so near is flat, below 1 in proportion; that of a live game moves more with each batch.
    flat_within: Weight = 0.01
    chance_within: Fraction = 0.15  # of 0.5: hardly more than guessing; few pairs say it no better
    loss_below: Weight = 1e-4  # of the discriminator: it has nothing left to learn
    # Of the game's gradient at SR beside the perceptual ones; those of live games were 0.01 to 1.
    share_below: Weight = 1e-3  # likewise
    # Then also do what helps: halve the rate of a discriminator that always wins, double that of one that never
    # woke, give one that fell asleep the weights that it had when awake, and halve the adversarial weight.
    ease_discriminator: bool = False
    patience: Annotated[int, Field(ge=0)] = 0  # validations without a better LPIPS before a stage ends; 0: never
    # Validation figures beyond these raise an alarm. A good generator reads 0.3, 45 dB, 0.4 and 0.01, one that
    # draws the same whatever it is shown about 50, 12 dB, any detail and 1.
    settling_steps: Annotated[int, Field(ge=0)] = 200  # of a stage, not judged: a new generator drifts at first
    colour_shift_above: Weight = 5.0  # grey levels
    lr_psnr_below: Weight = 28.0  # dB
    detail_within: Range = (0.05, 2.0)  # of HR's: from flat to noise
    sameness_above: Fraction = 0.3  # far from both

    @model_validator(mode="after")
    def _detail_ascends(self) -> Self:
        low, high = self.detail_within
        if not 0 <= low <= high:
            raise ValueError(f"detail_within must ascend from 0 or more, not {low:g} to {high:g}")
        return self


class Recipe(_Strict):
    """A whole training run. Defaults are Ledig et al. 2017."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # any number will do; the same one gives the same run
    # auto: bf16 where it is native. Not fp16: its range needs scaled losses, and gradients of gradients leave it.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # torch.compile for the generator: a wait before the first step, then faster ones; CPUs need a C++ compiler.
    # Not for the discriminator, whose penalties differentiate a gradient, which compiled code cannot.
    compile: bool = False
    # What to start from; empty: from scratch. A bundled model by its name, a file of weights (.safetensors),
    # or a checkpoint (.pt), which brings its discriminator along: a new one first learns what the old one knew.
    start: str = ""
    # A main network of your own to play for, instead of a generator: a module, or a .py file, with the
    # functions that `games.play_module` names. Its code is run: take no recipe with one from strangers.
    main_network: str = ""
    objective: Literal[
        "nonsaturating",
        "minimax",
        "lsgan",
        "wgan",
        "wgan-gp",
        "dragan",
        "began",
        "relativistic-average",
        "relativistic-paired",
    ] = "nonsaturating"
    generator: GeneratorRecipe = GeneratorRecipe()
    discriminator: DiscriminatorRecipe = Field(default=DiscriminatorRecipe(), validate_default=True)
    data: DataRecipe = DataRecipe()
    degradation: DegradationRecipe = DegradationRecipe()
    losses: LossesRecipe = Field(default=LossesRecipe(), validate_default=True)
    pretrain: PretrainRecipe = Field(default=PretrainRecipe(), validate_default=True)
    adversarial: AdversarialStageRecipe = Field(default=AdversarialStageRecipe(), validate_default=True)
    guards: GuardsRecipe = GuardsRecipe()
    log_steps: Annotated[int, Field(ge=1)] = 100  # measuring gradients by term costs as much as a step
    checkpoint_minutes: Positive = 5.0  # the most that a power cut costs
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2  # the last ones, beside the best
    validation_minutes: Positive = 5.0  # a look takes seconds: a hundredth of the time or so

    def stages(self) -> dict[str, StageRecipe]:
        """Return the stages that are to be run, by name and in their order."""
        stages: dict[str, StageRecipe] = {"pretrain": self.pretrain, "adversarial": self.adversarial}
        return {name: stage for name, stage in stages.items() if stage.steps}

    @field_validator("precision", mode="before")
    @classmethod
    def _old_words_are_understood(cls, precision: Any) -> Any:
        return _OLD_PRECISIONS.get(precision, precision) if isinstance(precision, str) else precision

    @field_validator("pretrain", "adversarial")
    @classmethod
    def _stage_of_the_scale(cls, stage: StageRecipe, before: ValidationInfo) -> StageRecipe:
        if "generator" not in before.data:
            return stage  # it was refused
        scale: int = before.data["generator"].scale
        if stage.steps and stage.patch_hr_px % scale:
            raise ValueError(
                f"{before.field_name}.patch_hr_px = {stage.patch_hr_px} must be a multiple of {scale}, "
                "which is generator.scale"
            )
        name = SCALE_IN_NAME.sub(str(scale), stage.export_name)  # what a name says is true
        return _filled(stage, {"patch_hr_px": max(96, 24 * scale)}).model_copy(update={"export_name": name})

    @field_validator("discriminator")
    @classmethod
    def _judge_of_the_objective(cls, judge: DiscriminatorRecipe, before: ValidationInfo) -> DiscriminatorRecipe:
        return judge.of(before.data["objective"]) if "objective" in before.data else judge  # else it was refused

    @field_validator("losses")
    @classmethod
    def _rules_of_the_objective(cls, losses: LossesRecipe, before: ValidationInfo) -> LossesRecipe:
        if "objective" not in before.data:
            return losses
        return losses.model_copy(update={"adversarial": losses.adversarial.of(before.data["objective"])})

    @model_validator(mode="after")
    def _game_can_be_played(self) -> Self:
        if not self.adversarial.steps or self.main_network:  # which brings a discriminator of its own
            return self
        kind, normalisation, patch_hr_px = (
            self.discriminator.kind,
            self.discriminator.normalisation,
            self.adversarial.patch_hr_px,
        )
        if patch_hr_px % 16:
            raise ValueError("adversarial.patch_hr_px must be a multiple of 16 for the discriminator's strides")
        if kind == "patch" and patch_hr_px < 32:
            raise ValueError("discriminator.kind 'patch' needs an adversarial.patch_hr_px of 32 or more")
        if (self.objective == "began") != (kind == "autoencoder"):
            raise ValueError(
                f"objective {self.objective!r} cannot use discriminator.kind {kind!r}: began needs "
                "'autoencoder', and nothing else does"
            )
        rules = self.losses.adversarial
        penalised = rules.r1_gamma or rules.r2_gamma
        if not penalised and rules.penalty_steps != type(rules).model_fields["penalty_steps"].default:
            raise ValueError(
                "losses.adversarial.penalty_steps is only read with r1_gamma or r2_gamma: leave it out"
            )
        if rules.pull and not rules.weight:
            raise ValueError("losses.adversarial.pull moves the weight in proportion, so not a weight of 0")
        reason = OBJECTIVE_DEFAULTS[self.objective].refuses_batch or (_BY_PICTURE if penalised else "")
        if reason and normalisation == "batch":
            raise ValueError(
                f"objective {self.objective!r} needs a discriminator without BatchNorm ({reason}): set "
                "discriminator.normalisation to none or spectral"
            )
        return self

    @model_validator(mode="after")
    def _exports_do_not_meet(self) -> Self:
        if len(self.stages()) == 2 and self.pretrain.export_name == self.adversarial.export_name:
            raise ValueError(
                f"pretrain.export_name and adversarial.export_name are both {self.pretrain.export_name!r}: one "
                "would overwrite the other"
            )
        return self

    @model_validator(mode="after")
    def _main_network_reads_it(self) -> Self:
        if not self.main_network:
            return self
        silent = Recipe(objective=self.objective)
        for key in _NOT_BESIDE_MAIN_NETWORK:
            ours, theirs = (reduce(getattr, key.split("."), recipe) for recipe in (self, silent))
            if ours != theirs:
                raise ValueError(f"{key} is not read beside main_network, which makes its own: leave it out")
        return self

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if not self.pretrain.steps and not self.adversarial.steps:
            raise ValueError("pretrain.steps and adversarial.steps are both 0: nothing to train")
        return self


# A main network brings its pictures, its judge and its loss; its run goes by steps, in one sitting.
_NOT_BESIDE_MAIN_NETWORK = (
    *("generator", "discriminator", "data", "degradation", "start", "compile"),
    *("losses.content.kind", "losses.perceptual", "losses.artifact", "losses.lpips", "losses.structure_texture"),
    *("pretrain.content", "checkpoint_minutes", "keep_checkpoints", "validation_minutes"),
    *(f"{stage}.{key}" for stage in STAGES for key in ("batch_size", "patch_hr_px", "ema_decay", "time_share")),
)


def bundled_recipes() -> list[str]:
    """Return the names that `load_recipe` knows without a path."""
    folder = resources.files("srgan.training") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """Return the TOML of a bundled recipe. Raises RecipeError for another name."""
    if name not in bundled_recipes():
        names = bundled_recipes()
        raise RecipeError(
            f"no recipe {name!r}: give a .toml file or one of {', '.join(names)}{did_you_mean(name, names)}"
        )
    return (resources.files("srgan.training") / "recipes" / f"{name}.toml").read_text("utf-8")


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a bundled recipe by name, or a TOML file, and apply `key.path=value` overrides (values in TOML).

    Raises RecipeError, in one line, for an unknown name, bad TOML, a misspelt key or a value out of range.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {name_or_path} cannot be read: {error}") from error
    else:
        text = recipe_text(name_or_path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {name_or_path} is not TOML: {error}") from error
    for override in overrides:
        _apply(values, override)
    recipe = validated(values, name_or_path)
    if values.get("precision") in _OLD_PRECISIONS:
        log.warning("precision = %r is now written %r", values["precision"], recipe.precision)
    return recipe


def validated(values: dict[str, Any], source: str) -> Recipe:
    """Return the recipe that `values` describe; `source` names it in the error. Raises RecipeError."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"recipe {source}: {'; '.join(map(_plain, error.errors()))}") from error


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override!r}: write key=value, for example --set pretrain.steps=1000")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string: --set objective=nonsaturating
    *parents, last = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RecipeError(f"--set {override!r}: {parent} is a value, not a section")
    values[last] = value


def _plain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "recipe"
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(problem["loc"])
        return f"unknown key {key!r}{did_you_mean(str(problem['loc'][-1]), known)}" + (
            f" (known: {', '.join(known)})" if known else ""
        )
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}"


def _keys_beside(location: Sequence[str | int]) -> list[str]:
    model: Any = Recipe
    for part in location[:-1]:
        model = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return sorted(model.model_fields)
