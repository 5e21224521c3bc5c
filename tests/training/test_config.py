"""Recipes: the paper's numbers by default, and every mistake said in one line."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
import types
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import srgan.training
from srgan.errors import RecipeError, UsageError
from srgan.networks import generator
from srgan.training import config
from srgan.training.adversarial import OBJECTIVES
from srgan.training.config import STAGES, Recipe, bundled_recipes, load_recipe, validated
from srgan.training.discriminators import DISCRIMINATORS
from srgan.training.losses import CONTENT_LOSSES


def refusal(values: dict[str, object]) -> str:
    """The one line that `values` are refused with."""
    with pytest.raises(RecipeError) as caught:
        validated(values, "mine.toml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("recipe mine.toml: ")
    return str(caught.value)


def nested(key: str, value: object) -> dict[str, object]:
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def test_defaults_are_the_papers() -> None:
    recipe = Recipe()
    assert recipe.objective == "nonsaturating"
    assert (recipe.generator.blocks, recipe.generator.features) == (16, 64)
    assert recipe.generator.normalisation == "none"
    assert (recipe.discriminator.kind, recipe.discriminator.features) == ("vgg", 64)
    losses = recipe.losses
    assert (losses.content.kind, losses.content.weight) == ("mse", 1.0)
    assert (losses.perceptual.network, losses.perceptual.layers) == ("vgg19", {"conv5_4": 1.0})
    assert (losses.perceptual.kind, losses.perceptual.weight) == ("mse", 0.006)
    assert losses.perceptual.after_activation
    assert losses.perceptual.feature_scale == 6.8
    assert losses.artifact == 0.0
    assert losses.adversarial.weight == 1e-3
    assert losses.adversarial.real_labels == (0.7, 1.2)
    assert losses.adversarial.fake_labels == (0.0, 0.3)
    assert (recipe.pretrain.steps, recipe.adversarial.steps) == (1_000_000, 200_000)
    assert recipe.pretrain.batch_size == recipe.adversarial.batch_size == 16
    assert recipe.pretrain.patch_hr_px == recipe.adversarial.patch_hr_px == 96
    assert recipe.pretrain.learning_rate == recipe.adversarial.learning_rate == 1e-4
    assert recipe.adversarial.final_learning_rate == 1e-5


def test_bundled_recipes_load() -> None:
    assert {"tiny", "srresnet_x4", "srgan_x4"} <= set(bundled_recipes())
    for name in bundled_recipes():
        assert isinstance(load_recipe(name), Recipe)


def test_the_default_preset_is_the_default() -> None:
    """`srgan_x4` shows the paper's numbers; none may differ from the one in the code."""
    assert load_recipe("srgan_x4") == Recipe()


@pytest.mark.parametrize("module", [config, generator])
def test_every_number_has_its_reason_beside_it(module: types.ModuleType) -> None:
    """As docs/training.md says: a comment in the line of its field, or in the lines above that belong to it."""
    source = inspect.getsource(module)
    lines = source.splitlines()
    fields = [
        field
        for class_ in ast.parse(source).body
        if isinstance(class_, ast.ClassDef)
        for field in class_.body
        if isinstance(field, ast.AnnAssign) and field.value is not None
    ]
    numbers = (int, float)
    without = [
        lines[field.lineno - 1].strip()
        for field in fields
        if any(isinstance(c, ast.Constant) and type(c.value) in numbers for c in ast.walk(field.value or field))
        and "#" not in lines[field.lineno - 1]
        and not lines[field.lineno - 2].strip().startswith("#")
    ]
    assert fields
    assert not without


@pytest.mark.parametrize("name", bundled_recipes())
def test_recipes_do_not_claim_to_show_every_key(name: str) -> None:
    text = (resources.files("srgan.training") / "recipes" / f"{name}.toml").read_text()
    shown, known = flat(tomllib.loads(text)), flat(Recipe().model_dump())
    assert shown < known
    assert "every key is shown" not in text.lower()


def flat(section: dict[str, Any], prefix: str = "") -> set[str]:
    """Keys with those of the sections that they are in."""
    keys: set[str] = set()
    for key, value in section.items():
        keys |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and key != "layers" else {prefix + key}
    return keys


def test_what_is_measured_in_the_documents_is_there() -> None:
    root = Path(__file__).parents[2]
    for name in ("README.md", "docs/evaluation.md"):
        folders = re.findall(r"evaluate --hr (\S+)", (root / name).read_text())
        assert folders
        assert all(list((root / folder).glob("*.png")) for folder in folders)


def test_srresnet_is_the_pretraining_alone() -> None:
    srresnet, srgan = load_recipe("srresnet_x4"), load_recipe("srgan_x4")
    assert srresnet.adversarial.steps == 0
    assert (srresnet.pretrain, srresnet.generator) == (srgan.pretrain, srgan.generator)


def test_tiny_needs_no_backbone() -> None:
    assert load_recipe("tiny").losses.perceptual.weight == 0


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("pretrain.steps=12", "pretrain.steps", 12),
        ("adversarial.betas=[0.5, 0.9]", "adversarial.betas", (0.5, 0.9)),
        ("objective=lsgan", "objective", "lsgan"),
        ('objective="minimax"', "objective", "minimax"),
        ("losses.perceptual.layers={conv3_3 = 0.5}", "losses.perceptual.layers", {"conv3_3": 0.5}),
        ("losses.perceptual.after_activation=false", "losses.perceptual.after_activation", False),
        ("losses.perceptual.file=/a b/vgg=1.safetensors", "losses.perceptual.file", "/a b/vgg=1.safetensors"),
        (" pretrain.steps = 1_000", "pretrain.steps", 1000),
    ],
)
def test_overrides(override: str, key: str, value: object) -> None:
    setting: object = load_recipe("srgan_x4", [override])
    for part in key.split("."):
        setting = getattr(setting, part)
    assert setting == value


def test_the_last_override_wins_and_the_rest_stays() -> None:
    recipe = load_recipe("tiny", ["pretrain.steps=5", "pretrain.steps=6"])
    assert recipe.pretrain.steps == 6
    assert recipe.pretrain.batch_size == load_recipe("tiny").pretrain.batch_size


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("pretrain.steps", "write key=value"),
        ("=5", "write key=value"),
        ("", "write key=value"),
        ("pretrain.steps.deeper=1", "steps is a value, not a section"),
        ("pretrain.step=5", "unknown key 'pretrain.step'"),
        ("pretrain.steps=many", "pretrain.steps"),
        ("pretrain.steps=1.5", "pretrain.steps"),
        ("pretrain.learning_rate=nan", "pretrain.learning_rate"),
        ("pretrain.learning_rate=inf", "pretrain.learning_rate"),
        (".steps=1", "unknown key"),
    ],
)
def test_bad_overrides(override: str, part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny", [override])
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_names_the_known_ones() -> None:
    line = refusal({"pretrain": {"stepz": 5}})
    assert "unknown key 'pretrain.stepz'" in line
    known = re.search(r"known: (.*)\)", line)
    assert known
    assert {"steps", "batch_size", "content", "export_name"} <= set(known[1].split(", "))
    assert "discriminator_learning_rate" not in known[1]  # of the other stage


def test_a_misspelt_section_and_two_mistakes_at_once() -> None:
    line = refusal({"generater": {}, "losses": {"contents": {}}})
    assert "unknown key 'generater'; did you mean 'generator'? (known: adversarial, " in line
    assert (
        "unknown key 'losses.contents'; did you mean 'content'? (known: adversarial, artifact, content, " in line
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("generator.blocks", 0),
        ("generator.blocks", 65),
        ("generator.features", -1),
        ("generator.normalisation", "layer"),
        ("discriminator.kind", "resnet"),
        ("discriminator.features", 0),
        ("data.held_out", -1),
        ("losses.content.kind", "l2"),
        ("losses.content.weight", -1.0),
        ("losses.content.weight", float("nan")),
        ("losses.perceptual.weight", float("inf")),
        ("losses.perceptual.feature_scale", 0),
        ("losses.perceptual.network", "vgg11"),
        ("losses.adversarial.real_labels", [1.2, 0.7]),
        ("losses.adversarial.fake_labels", [0.3]),
        ("losses.adversarial.fake_labels", [0.0, float("nan")]),
        ("pretrain.steps", -1),
        ("pretrain.batch_size", 0),
        ("pretrain.patch_hr_px", 15),
        ("pretrain.patch_hr_px", 98),
        ("pretrain.learning_rate", 0),
        ("pretrain.hold", 1.5),
        ("pretrain.ema_decay", 1.1),
        ("pretrain.clip_norm", -1),
        ("pretrain.betas", [0.9, 1.5]),
        ("pretrain.time_share", 0),
        ("adversarial.discriminator_learning_rate", 0),
        ("adversarial.ramp_steps", -5),
        ("objective", "hinge"),
        ("precision", "16-mixed"),
        ("log_steps", 0),
        ("checkpoint_minutes", 0),
        ("seed", "lucky"),
    ],
)
def test_out_of_range(key: str, value: object) -> None:
    section = key if "labels" not in key or value != [1.2, 0.7] else "losses.adversarial"
    assert section in refusal(nested(key, value))


def test_patches_must_fit_the_discriminator() -> None:
    assert "multiple of 16" in refusal({"adversarial": {"patch_hr_px": 104}})
    assert validated({"adversarial": {"patch_hr_px": 104, "steps": 0}}, "x").adversarial.patch_hr_px == 104


def test_nothing_to_train() -> None:
    assert "nothing to train" in refusal({"pretrain": {"steps": 0}, "adversarial": {"steps": 0}})


def test_unknown_recipe_names_the_bundled_ones() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("srgan_x5")
    assert "no recipe 'srgan_x5'" in str(caught.value)
    assert all(name in str(caught.value) for name in bundled_recipes())


@pytest.mark.parametrize("name", ["../tiny", "recipes/tiny", "", "tiny "])
def test_a_bundled_name_is_only_a_name(name: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe(name)


def test_recipe_files(tmp_path: Path) -> None:
    good, bad, binary = (tmp_path / name for name in ("good.toml", "bad.toml", "binary.toml"))
    good.write_text("seed = 3\n[pretrain]\nsteps = 7\n")
    bad.write_text("[pretrain\nsteps = 7\n")
    binary.write_bytes(b"\xff\xfe\x00")
    recipe = load_recipe(str(good), ["pretrain.steps=8"])
    assert (recipe.seed, recipe.pretrain.steps) == (3, 8)
    for path, part in (
        (bad, "is not TOML"),
        (binary, "cannot be read"),
        (tmp_path / "absent.toml", "cannot be read"),
        (tmp_path, "no recipe"),
    ):
        with pytest.raises(RecipeError, match=part) as caught:
            load_recipe(str(path))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_recipe_error_is_the_users() -> None:
    assert issubclass(RecipeError, UsageError)  # exit code 2


def test_recipes_are_frozen() -> None:
    recipe = Recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        recipe.pretrain.steps = 1  # type: ignore[misc]


def test_a_recipe_survives_its_own_json() -> None:
    for name in bundled_recipes():
        recipe = load_recipe(name)
        assert validated(recipe.model_dump(mode="json"), "checkpoint") == recipe
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(("old", "new"), [("32-true", "fp32"), ("bf16-mixed", "bf16")])
def test_old_words_for_a_precision_are_understood_with_a_note(
    caplog: pytest.LogCaptureFixture, old: str, new: str
) -> None:
    assert load_recipe("tiny", [f"precision={old}"]).precision == new
    assert caplog.messages == [f"precision = {old!r} is now written {new!r}"]
    caplog.clear()
    assert load_recipe("tiny", [f"precision={new}"]).precision == new
    assert (
        validated({"precision": old}, "checkpoint").precision == new
    )  # as an older one has it: nobody wrote it now
    assert caplog.messages == []


@pytest.mark.parametrize("word", ["fp16", "int8", "16-mixed", "bf16-true"])
def test_precisions_that_do_not_train_are_refused(word: str) -> None:
    with pytest.raises(RecipeError, match="precision: Input should be 'auto', 'fp32' or 'bf16'"):
        load_recipe("tiny", [f"precision={word}"])


def test_stages_are_those_with_steps_in_their_order() -> None:
    recipe = Recipe()
    assert list(recipe.stages()) == list(STAGES)
    assert recipe.stages() == {"pretrain": recipe.pretrain, "adversarial": recipe.adversarial}
    assert list(validated({"pretrain": {"steps": 0}}, "x").stages()) == ["adversarial"]
    assert list(validated({"adversarial": {"steps": 0}}, "x").stages()) == ["pretrain"]


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, type[BaseModel]]]:
    """(dotted key, field, model that holds it) of every leaf."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", name, model


def attributes_read() -> set[str]:
    """Names read as attributes in the training package, but in config.py, and by the command that trains."""
    folder = Path(srgan.training.__file__).parent
    modules = [path for path in folder.rglob("*.py") if path.name != "config.py"]
    read: set[str] = set()
    for path in (*modules, folder.parent / "commands" / "train.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    return read


def test_every_option_is_read() -> None:
    """A section given away whole, as keyword arguments, is read by the signature that takes it."""
    read = attributes_read()
    unpacked = {"GeneratorRecipe"}  # Generator(**recipe.generator.model_dump())
    unread = [key for key, name, model in fields(Recipe) if model.__name__ not in unpacked and name not in read]
    assert len(list(fields(Recipe))) > 40
    assert unread == []


def test_the_generators_section_is_its_signature() -> None:
    import inspect

    from srgan.networks.generator import Generator

    taken = inspect.signature(Generator).parameters
    assert {name: p.default for name, p in taken.items()} == Recipe().generator.model_dump()


@pytest.mark.parametrize(
    ("field", "model", "registry"),
    [
        ("objective", Recipe, OBJECTIVES),
        ("kind", Recipe.model_fields["discriminator"].annotation, DISCRIMINATORS),
        ("content", Recipe.model_fields["pretrain"].annotation, CONTENT_LOSSES),
    ],
)
def test_choices_and_registries_agree(field: str, model: type[BaseModel], registry: dict[str, object]) -> None:
    choices = model.model_fields[field].annotation
    assert set(choices.__args__) == set(registry)  # type: ignore[union-attr]
