"""The objectives: losses by hand, gradients where they belong, and the games' own rules."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srgan.errors import RecipeError
from srgan.training.adversarial import OBJECTIVES, Began, Objective, gradient_penalty
from srgan.training.config import AdversarialRecipe, Recipe, load_recipe, validated
from srgan.training.discriminators import DISCRIMINATORS


class MeanOf(nn.Module):
    """A discriminator whose logit is slope × the picture's mean, so that every loss can be had by hand."""

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, picture: Tensor) -> Tensor:
        return self.slope * picture.flatten(1).mean(1, keepdim=True)


class Halves(nn.Module):
    """An autoencoder that gives back half of what it is shown."""

    def forward(self, picture: Tensor) -> Tensor:
        return picture / 2


def make(key: str, **settings: object) -> Objective:
    return OBJECTIVES[key](AdversarialRecipe(**settings), torch.Generator().manual_seed(0))


def pictures(*means: float) -> Tensor:
    return torch.stack([torch.full((3, 8, 8), mean) for mean in means])


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


# Scores of these pictures under MeanOf(1): 0.5 and 1.0 for the real ones, 0.25 and -0.25 for the generated.
HR, SR = pictures(0.5, 1.0), pictures(0.25, -0.25)


def cross_entropy(score: float, label: float) -> float:
    return -(label * log_sigmoid(score) + (1 - label) * log_sigmoid(-score))


BY_HAND: dict[str, tuple[float, float]] = {
    "minimax": (
        (cross_entropy(0.5, 1) + cross_entropy(1, 1)) / 2 + (cross_entropy(0.25, 0) + cross_entropy(-0.25, 0)) / 2,
        -(cross_entropy(0.25, 0) + cross_entropy(-0.25, 0)) / 2,
    ),
    "lsgan": (
        (0.5**2 + 0**2) / 2 + (0.25**2 + 0.25**2) / 2,
        (0.75**2 + 1.25**2) / 2,
    ),
    "wgan": (0.0 - 0.75, -0.0),
    "relativistic-paired": (  # pairs (0.5, 0.25) and (1, -0.25)
        -(log_sigmoid(0.25) + log_sigmoid(1.25)) / 2,
        -(log_sigmoid(-0.25) + log_sigmoid(-1.25)) / 2,
    ),
    "relativistic-average": (  # means: real 0.75, generated 0
        (
            (cross_entropy(0.5, 1) + cross_entropy(1.0, 1)) / 2
            + (cross_entropy(0.25 - 0.75, 0) + cross_entropy(-0.25 - 0.75, 0)) / 2
        )
        / 2,
        (
            (cross_entropy(0.5, 0) + cross_entropy(1.0, 0)) / 2
            + (cross_entropy(0.25 - 0.75, 1) + cross_entropy(-0.25 - 0.75, 1)) / 2
        )
        / 2,
    ),
}


@pytest.mark.parametrize("key", BY_HAND)
def test_losses_equal_those_by_hand(key: str) -> None:
    objective, discriminator = make(key), MeanOf()
    expected_d, expected_g = BY_HAND[key]
    assert objective.game_loss(discriminator, HR, SR).item() == pytest.approx(expected_d, abs=1e-6)
    assert objective.generator_loss(discriminator, HR, SR).item() == pytest.approx(expected_g, abs=1e-6)


def test_nonsaturating_with_fixed_labels_equals_the_hand() -> None:
    objective = make("nonsaturating", real_labels=(0.9, 0.9), fake_labels=(0.1, 0.1))
    expected = (cross_entropy(0.5, 0.9) + cross_entropy(1, 0.9)) / 2 + (
        cross_entropy(0.25, 0.1) + cross_entropy(-0.25, 0.1)
    ) / 2
    assert objective.discriminator_loss(MeanOf(), HR, SR).item() == pytest.approx(expected, abs=1e-6)
    expected = (cross_entropy(0.25, 1) + cross_entropy(-0.25, 1)) / 2
    assert objective.generator_loss(MeanOf(), HR, SR).item() == pytest.approx(expected, abs=1e-6)


def test_wgan_gp_adds_ten_times_the_squared_departure_from_slope_one() -> None:
    # MeanOf(s) has the same gradient everywhere: s/n for each of n pixels, of norm s/√n.
    slope = 4.0
    norm = slope / math.sqrt(3 * 8 * 8)
    expected = slope * BY_HAND["wgan"][0] + 10 * (norm - 1) ** 2
    assert make("wgan-gp").discriminator_loss(MeanOf(slope), HR, SR).item() == pytest.approx(expected, rel=1e-5)
    assert make("wgan-gp").generator_loss(MeanOf(), HR, SR).item() == pytest.approx(BY_HAND["wgan"][1], abs=1e-6)


def test_dragan_is_cross_entropy_plus_the_penalty_near_real_pictures() -> None:
    settings = {"real_labels": (1.0, 1.0), "fake_labels": (0.0, 0.0)}
    slope = 2.0
    plain = make("nonsaturating", **settings).discriminator_loss(MeanOf(slope), HR, SR)
    loss = make("dragan", **settings).discriminator_loss(MeanOf(slope), HR, SR)
    expected = 10 * (slope / math.sqrt(3 * 8 * 8) - 1) ** 2
    assert (loss - plain).item() == pytest.approx(expected, rel=1e-5)


class Remembers(MeanOf):
    """Keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, picture: Tensor) -> Tensor:
        self.seen.append(picture.detach())
        return super().forward(picture)


def test_penalties_are_taken_where_their_papers_say() -> None:
    between, around = Remembers(), Remembers()
    make("wgan-gp").discriminator_loss(between, torch.ones(4, 3, 8, 8), torch.zeros(4, 3, 8, 8))
    mix = between.seen[0]
    shares = mix.flatten(1).mean(1)
    torch.testing.assert_close(mix, shares.view(-1, 1, 1, 1).expand_as(mix))  # one share for each picture
    assert shares.min() > 0
    assert shares.max() < 1
    assert len(shares.unique()) == 4
    hr = torch.rand(4, 3, 8, 8)
    make("dragan").discriminator_loss(around, hr, torch.zeros_like(hr))
    departure = around.seen[0] - hr
    assert departure.min() >= 0
    assert 0 < departure.max() <= 0.5 * hr.std()


def test_gradient_penalty_is_zero_at_slope_one_and_reaches_the_weights() -> None:
    discriminator = MeanOf(math.sqrt(3 * 8 * 8))
    assert gradient_penalty(discriminator, HR).item() == pytest.approx(0, abs=1e-6)
    steep = MeanOf(100.0)
    gradient_penalty(steep, HR).backward()
    assert steep.slope.grad is not None
    assert steep.slope.grad > 0


class Bowl(nn.Module):
    """A discriminator whose logit is depth/2 × ‖picture‖², so that its gradient is depth × picture."""

    def __init__(self, depth: float) -> None:
        super().__init__()
        self.depth = nn.Parameter(torch.tensor(depth))

    def forward(self, picture: Tensor) -> Tensor:
        return self.depth / 2 * picture.flatten(1).square().sum(1, keepdim=True)


def losses_of(objective: Objective, discriminator: nn.Module, count: int) -> list[float]:
    return [objective.discriminator_loss(discriminator, HR, SR).item() for _ in range(count)]


WITH_LOGITS = [key for key in OBJECTIVES if key != "began"]
SQUARES = {"hr": 3 * 8 * 8 * (0.5**2 + 1) / 2, "sr": 3 * 8 * 8 * 0.25**2}  # mean ‖picture‖²


@pytest.mark.parametrize("key", WITH_LOGITS)
def test_zero_centred_penalties_by_hand_in_every_objective(key: str) -> None:
    """γ/2 (depth ‖v‖)² at HR and at SR, of which autograd must find γ depth ‖v‖² for the depth."""
    depth = 0.02
    plain, penalised = (
        make(key, r1_gamma=0.0, r2_gamma=0.0),
        make(key, r1_gamma=0.3, r2_gamma=0.7, penalty_steps=1),
    )
    bowls = Bowl(depth), Bowl(depth)
    losses = [one.discriminator_loss(bowl, HR, SR) for one, bowl in zip((plain, penalised), bowls, strict=True)]
    expected = depth**2 * (0.3 * SQUARES["hr"] + 0.7 * SQUARES["sr"]) / 2
    assert (losses[1] - losses[0]).item() == pytest.approx(expected, rel=1e-4)
    assert penalised.watched["penalty"].item() == pytest.approx(expected, rel=1e-5)
    assert penalised.watched["discriminator"].item() == pytest.approx(losses[0].item())
    gradients = [torch.autograd.grad(loss, bowl.depth)[0] for loss, bowl in zip(losses, bowls, strict=True)]
    assert (gradients[1] - gradients[0]).item() == pytest.approx(2 * expected / depth, rel=1e-4)


def test_penalties_of_a_linear_discriminator_are_its_weights_square() -> None:
    """D(v) = w·v slopes by w everywhere, so R1 = γ/2 ‖w‖², whose gradient is γ w, whatever is shown."""
    layer = nn.Linear(3 * 8 * 8, 1)
    linear, weight = nn.Sequential(nn.Flatten(), layer), layer.weight
    loss = make("relativistic-paired", r1_gamma=2.0, r2_gamma=0.0, penalty_steps=1)
    game = make("relativistic-paired", r1_gamma=0.0, r2_gamma=0.0)
    penalty = loss.discriminator_loss(linear, HR, SR) - game.discriminator_loss(linear, HR, SR)
    torch.testing.assert_close(penalty, weight.square().sum())
    torch.testing.assert_close(torch.autograd.grad(penalty, weight)[0], 2 * weight, rtol=1e-4, atol=1e-5)


def test_penalties_are_lazy_and_as_many_times_as_strong() -> None:
    lazy, always = make("relativistic-paired", penalty_steps=3), make("relativistic-paired", penalty_steps=1)
    game = make("relativistic-paired", r1_gamma=0.0, r2_gamma=0.0).discriminator_loss(Bowl(0.02), HR, SR).item()
    penalties = [loss - game for loss in losses_of(lazy, Bowl(0.02), 7)]
    once = losses_of(always, Bowl(0.02), 1)[0] - game
    assert once > 0
    assert penalties == pytest.approx([3 * once, 0, 0, 3 * once, 0, 0, 3 * once], rel=1e-4, abs=1e-7)


def test_the_paired_objective_has_both_penalties_by_itself_and_the_others_none() -> None:
    own = make("relativistic-paired").recipe
    assert (own.r1_gamma, own.r2_gamma, own.penalty_steps) == (1.0, 1.0, 4)
    for key in set(OBJECTIVES) - {"relativistic-paired"}:
        assert (make(key).recipe.r1_gamma, make(key).recipe.r2_gamma) == (0.0, 0.0)
    assert make("lsgan", r1_gamma=2.0).recipe.r1_gamma == 2.0


def test_penalties_stay_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    discriminator = discriminator_for("relativistic-paired")
    hr, sr = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    plain, cast = make("relativistic-paired"), make("relativistic-paired")
    plain.discriminator_loss(discriminator, hr, sr)
    with torch.autocast("cpu", torch.bfloat16):
        cast.discriminator_loss(discriminator, hr, sr)
    assert torch.equal(cast.watched["penalty"], plain.watched["penalty"])
    assert not torch.equal(cast.watched["discriminator"], plain.watched["discriminator"])  # in bfloat16


def test_pairs_are_of_one_place() -> None:
    """Swapping the generated pictures of two places changes the game, as it does not where averages judge."""
    swapped = SR.flip(0)
    for key, same in (("relativistic-paired", False), ("relativistic-average", True)):
        losses = [make(key).game_loss(MeanOf(), HR, sr).item() for sr in (SR, swapped)]
        assert (losses[0] == pytest.approx(losses[1])) is same


def test_began_by_hand_and_its_balance() -> None:
    objective = make("began", began_gamma=0.7, began_gain=0.1)
    assert isinstance(objective, Began)
    real, fake = 0.75 / 2, 0.25 / 2  # |v - v/2|, the mean of |0.25| and |-0.25| halved
    assert objective.discriminator_loss(Halves(), HR, SR).item() == pytest.approx(real)  # k starts at 0
    assert objective.generator_loss(Halves(), HR, SR).item() == pytest.approx(fake)
    objective.after_discriminator_step(Halves())
    k = 0.1 * (0.7 * real - fake)
    assert float(objective.k) == pytest.approx(k)
    assert objective.discriminator_loss(Halves(), HR, SR).item() == pytest.approx(real - k * fake)
    for _ in range(200):
        objective.discriminator_loss(Halves(), HR, SR)
        objective.after_discriminator_step(Halves())
    assert objective.k == 1.0  # clamped
    for _ in range(200):
        objective.discriminator_loss(Halves(), SR, HR)
        objective.after_discriminator_step(Halves())
    assert objective.k == 0.0
    assert objective.scores(Halves(), HR).tolist() == pytest.approx([-0.25, -0.5])


def test_began_has_one_balance_over_all_processes() -> None:
    """Two processes that see different pictures move k alike, by the means of both their errors."""
    shown: list[Tensor] = []

    def mean_of_both(errors: Tensor) -> Tensor:
        shown.append(errors)
        return torch.tensor([0.4, 0.1])

    settings = AdversarialRecipe(began_gamma=0.5, began_gain=0.1)
    for hr, sr in ((HR, SR), (SR, HR)):
        objective = Began(settings, torch.Generator(), mean_of_both)
        objective.discriminator_loss(Halves(), hr, sr)
        objective.after_discriminator_step(Halves())
        assert float(objective.k) == pytest.approx(0.1 * (0.5 * 0.4 - 0.1))
    assert not torch.equal(*shown)


def test_a_step_that_was_left_out_does_not_move_the_balance() -> None:
    objective = make("began")
    assert isinstance(objective, Began)
    objective.k = torch.tensor(0.25)
    objective.discriminator_loss(Halves(), HR * float("nan"), SR)
    objective.after_discriminator_step(Halves())
    assert float(objective.k) == 0.25


def test_began_state_is_exact() -> None:
    objective, other = make("began", began_gain=0.1), make("began", began_gain=0.1)
    assert isinstance(objective, Began)
    assert isinstance(other, Began)
    for _ in range(3):
        objective.discriminator_loss(Halves(), HR, SR)
        objective.after_discriminator_step(Halves())
    other.load_state_dict(objective.state_dict())
    assert torch.equal(objective.k, other.k)
    assert objective.k > 0


def test_labels_are_drawn_anew_within_their_ranges_for_every_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []

    def spy(logits: Tensor, labels: Tensor) -> Tensor:
        drawn.append(labels.clone())
        return logits.sum() * 0

    monkeypatch.setattr(F, "binary_cross_entropy_with_logits", spy)
    objective = make("nonsaturating")
    many = torch.rand(500, 3, 8, 8)
    for _ in range(2):
        objective.discriminator_loss(MeanOf(), many, many)
    real, fake, real_again, _ = drawn
    assert 0.7 <= real.min() < 0.72
    assert 1.18 < real.max() < 1.2
    assert 0 <= fake.min() < 0.02
    assert 0.28 < fake.max() < 0.3
    assert len(real.unique()) > 490  # one for each picture
    assert not torch.equal(real, real_again)


def test_wgan_clips_every_weight_after_a_step_by_the_inputs_of_its_layer() -> None:
    discriminator = nn.Sequential(nn.Conv2d(128, 2, 4), nn.Conv2d(2, 3, 4), nn.BatchNorm2d(3), nn.Linear(8, 1))
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.fill_(-5.0)
    make("wgan", clip_weights=0.01).after_discriminator_step(discriminator)
    bounds = {name: (p.min().item(), p.max().item()) for name, p in discriminator.named_parameters()}
    for name, bound in {
        "0.weight": 0.01,
        "1.weight": 0.08,
        "2.weight": 0.01,
        "3.weight": 0.16,
        "3.bias": 0.01,
    }.items():
        assert bounds[name] == pytest.approx((-bound, -bound))  # 2048, 32 and 8 inputs


def test_wgan_leaves_what_spectral_norm_has_bounded() -> None:
    discriminator = DISCRIMINATORS["vgg"](32, 4, "spectral")
    before = {name: value.clone() for name, value in discriminator.named_parameters()}
    make("wgan").after_discriminator_step(discriminator)
    for name, value in discriminator.named_parameters():
        assert torch.equal(value, before[name]) == ("original" in name)


def test_dragan_has_plain_labels_by_itself() -> None:
    own = make("dragan").recipe
    assert (own.real_labels, own.fake_labels) == ((1.0, 1.0), (0.0, 0.0))
    expected = (cross_entropy(0.5, 1) + cross_entropy(1, 1)) / 2 + (
        cross_entropy(0.25, 0) + cross_entropy(-0.25, 0)
    ) / 2
    loss = make("dragan", gradient_penalty=0.0).discriminator_loss(MeanOf(), HR, SR).item()
    assert loss == pytest.approx(expected, abs=1e-6)
    assert make("dragan", real_labels=(0.9, 0.9)).recipe.real_labels == (0.9, 0.9)


def test_wasserstein_critics_move_five_times_for_each_generator_step() -> None:
    assert {key for key, value in OBJECTIVES.items() if value.discriminator_steps == 5} == {"wgan", "wgan-gp"}
    assert {value.discriminator_steps for key, value in OBJECTIVES.items() if "wgan" not in key} == {1}


def discriminator_for(key: str) -> nn.Module:
    return DISCRIMINATORS["autoencoder" if key == "began" else "vgg"](32, 4, "none")


@pytest.mark.parametrize("key", OBJECTIVES)
def test_every_objective_teaches_both_players(key: str) -> None:
    torch.manual_seed(0)
    objective, discriminator = make(key), discriminator_for(key)
    hr, sr = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32, requires_grad=True)
    objective.discriminator_loss(discriminator, hr, sr.detach()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in discriminator.parameters())
    objective.generator_loss(discriminator, hr, sr).backward()
    assert sr.grad is not None
    assert sr.grad.abs().sum() > 0


@pytest.mark.parametrize("key", OBJECTIVES)
def test_descending_the_generator_loss_makes_pictures_look_more_real(key: str) -> None:
    torch.manual_seed(0)
    objective, discriminator = make(key), discriminator_for(key)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3)
    hr, sr = torch.rand(8, 3, 32, 32) * 0.2 + 0.6, torch.rand(8, 3, 32, 32) * 0.2 + 0.2
    for _ in range(15):
        optimizer.zero_grad()
        objective.discriminator_loss(discriminator, hr, sr).backward()
        optimizer.step()
        objective.after_discriminator_step(discriminator)
    discriminator.requires_grad_(False)
    moving = sr.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective.generator_loss(discriminator, hr, moving), moving)
    moved = sr - 0.05 * gradient / gradient.abs().amax()
    assert objective.scores(discriminator, moved).mean() > objective.scores(discriminator, sr).mean()


@pytest.mark.parametrize("key", OBJECTIVES)
def test_state_continues_the_game(key: str) -> None:
    one, other = make(key), OBJECTIVES[key](AdversarialRecipe(), torch.Generator().manual_seed(7))
    discriminator = discriminator_for(key).eval()
    hr, sr = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)

    def play(objective: Objective) -> float:
        loss = objective.discriminator_loss(discriminator, hr, sr).item()
        objective.after_discriminator_step(nn.Identity())
        return loss

    for _ in range(3):
        play(one)
    other.load_state_dict(one.state_dict())
    other.random.set_state(one.random.get_state())
    assert [play(other) for _ in range(3)] == [play(one) for _ in range(3)]


RULES = {"penalty_steps": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "began", "discriminator": {"kind": "vgg"}}, "autoencoder"),
        ({"objective": "lsgan", "discriminator": {"kind": "autoencoder"}}, "nothing else does"),
        ({"objective": "wgan-gp", "discriminator": {"normalisation": "batch"}}, "BatchNorm .*picture by picture"),
        ({"objective": "dragan", "discriminator": {"normalisation": "batch"}}, "BatchNorm .*picture by picture"),
        ({"objective": "wgan", "discriminator": {"normalisation": "batch"}}, "BatchNorm .*clipped"),
        (
            {"objective": "relativistic-paired", "discriminator": {"normalisation": "batch"}},
            "BatchNorm .*picture by picture",
        ),
        ({"losses": {"adversarial": {"r1_gamma": 1.0}}}, "BatchNorm .*picture by picture"),
        ({"objective": "wgan", "adversarial": {"patch_hr_px": 16}}, "32 or more"),
        ({"losses": {"adversarial": {"penalty_steps": 16}}}, "only read with r1_gamma or r2_gamma"),
        (
            {
                "objective": "relativistic-paired",
                "losses": {"adversarial": RULES | {"r1_gamma": 0, "r2_gamma": 0}},
            },
            "only read with r1_gamma or r2_gamma",
        ),
        ({"losses": {"adversarial": {"pull": 0.3, "weight": 0.0}}}, "not a weight of 0"),
        ({"objective": "hinge"}, "relativistic-average"),
    ],
)
def test_impossible_pairs_are_refused_before_training(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        validated(settings, "recipe.toml")


UNREAD = {
    "real_labels": [0.9, 0.9],
    "fake_labels": [0.1, 0.1],
    "clip_weights": 0.1,
    "gradient_penalty": 1.0,
    "began_gamma": 0.5,
    "began_gain": 0.01,
}
READERS = {
    "real_labels": {"nonsaturating", "dragan"},
    "fake_labels": {"nonsaturating", "dragan"},
    "clip_weights": {"wgan"},
    "gradient_penalty": {"wgan-gp", "dragan"},
    "began_gamma": {"began"},
    "began_gain": {"began"},
}


@pytest.mark.parametrize("key", OBJECTIVES)
@pytest.mark.parametrize("setting", UNREAD)
def test_settings_that_an_objective_does_not_read_are_refused(key: str, setting: str) -> None:
    settings = {"objective": key, "losses": {"adversarial": {setting: UNREAD[setting]}}}
    if key in READERS[setting]:
        recipe = validated(settings, "recipe.toml")
        assert recipe.losses.adversarial.model_dump(mode="json")[setting] == UNREAD[setting]
        return
    message = rf"losses: adversarial\.{setting} is not read by objective '{key}', only by "
    with pytest.raises(RecipeError, match=message):
        validated(settings, "recipe.toml")
    with pytest.raises(ValueError, match="is not read"):
        make(key, **{setting: UNREAD[setting]})


@pytest.mark.parametrize("key", OBJECTIVES)
def test_every_objective_has_a_discriminator_that_it_can_use_by_itself(key: str) -> None:
    recipe = validated({"objective": key}, "recipe.toml")
    judge = (recipe.discriminator.kind, recipe.discriminator.normalisation)
    expected = {
        "wgan": ("patch", "none"),
        "wgan-gp": ("vgg", "none"),
        "dragan": ("vgg", "none"),
        "began": ("autoencoder", "none"),
        "relativistic-paired": ("vgg", "none"),
    }
    assert judge == expected.get(key, ("vgg", "batch"))
    assert validated(recipe.model_dump(mode="json"), "recipe.json") == recipe
    assert load_recipe("srgan_x4", [f"objective={key}"]) == recipe
    spectral = validated({"objective": key, "discriminator": {"normalisation": "spectral"}}, "recipe.toml")
    assert spectral.discriminator.normalisation == "spectral"


def test_every_objective_of_the_recipe_exists() -> None:
    assert set(Recipe.model_json_schema()["properties"]["objective"]["enum"]) == set(OBJECTIVES)


SHAPES: dict[str, Callable[[int], tuple[int, ...]]] = {
    "vgg": lambda _size: (1,),
    "unet": lambda size: (1, size, size),
    "patch": lambda size: (1, size // 8 - 2, size // 8 - 2),
    "autoencoder": lambda size: (3, size, size),
}


@pytest.mark.parametrize("kind", DISCRIMINATORS)
@pytest.mark.parametrize("normalisation", ["none", "batch", "spectral"])
def test_discriminators_give_what_they_promise(kind: str, normalisation: str) -> None:
    discriminator = DISCRIMINATORS[kind](32, 4, normalisation)
    assert discriminator(torch.rand(2, 3, 32, 32)).shape == (2, *SHAPES[kind](32))
    normalised = any(isinstance(module, nn.BatchNorm2d) for module in discriminator.modules())
    assert normalised == (normalisation == "batch")
    spectral = any("parametrizations" in name for name, _ in discriminator.named_parameters())
    assert spectral == (normalisation == "spectral")
