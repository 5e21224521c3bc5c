"""Checkpoints and generator files: what goes in comes out, and nothing damaged or foreign goes in."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from srgan.errors import TrainingError, WeightsError
from srgan.networks.generator import Generator
from srgan.networks.reading import fill, load_checkpoint, load_generator
from srgan.training import checkpoint
from srgan.training.checkpoint import checkpoint_path, checkpoints, latest_checkpoint, prune, save_checkpoint
from srgan.weights import METADATA_KEY, ModelMetadata


def example() -> dict[str, Any]:
    """A state with everything that a real one has in it."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "recipe": {"name": "ünïcode", "steps": 3, "betas": [0.9, 0.99]},
        "position": {"step": 7, "elapsed_s": 1.25, "best": float("inf")},
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.Generator().manual_seed(3).get_state(),
    }


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b) or (isinstance(a, dict) and isinstance(b, dict))
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    assert "weights_only" not in text  # torch's advice to switch the protection off
    return text


def sealed(payload: bytes) -> bytes:
    """`payload` with a correct header, as one would write who knows the format."""
    return b"srgan-checkpoint 1 " + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def test_round_trip(tmp_path: Path) -> None:
    state = example()
    save_checkpoint(tmp_path / "deep" / "er" / "a.pt", state)
    assert_same(load_checkpoint(tmp_path / "deep" / "er" / "a.pt"), state)
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["a.pt"]


def test_saving_again_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for step in (1, 2):
        save_checkpoint(path, {"step": step})
    assert load_checkpoint(path) == {"step": 2}


def test_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    save_checkpoint(whole, example())
    content = whole.read_bytes()
    for length in [*range(0, 90), *range(90, len(content), len(content) // 60), len(content) - 1]:
        cut.write_bytes(content[:length])
        refusal(cut)


def test_one_flipped_bit_anywhere_is_refused(tmp_path: Path) -> None:
    whole, bad = tmp_path / "whole.pt", tmp_path / "bad.pt"
    save_checkpoint(whole, example())
    content = whole.read_bytes()
    for place in range(0, len(content), len(content) // 50):
        bad.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        refusal(bad)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 500, b"PK\x03\x04 not a zip", b"srgan-checkpoint 2 " + b"0" * 65, b"\xff\xd8\xff\xe0"],
)
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    assert "not a checkpoint" in refusal(path)


def test_a_plain_torch_file_is_foreign(tmp_path: Path) -> None:
    torch.save(example(), tmp_path / "x.pt")
    assert "not a checkpoint" in refusal(tmp_path / "x.pt")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "absent.pt")
    assert "cannot be read" in refusal(tmp_path)


class Trap:
    """A pickle that creates a file as soon as it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def payloads(canary: Path) -> dict[str, bytes]:
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"model": Trap(canary)}, zipped)
    torch.save({"model": Trap(canary)}, legacy, _use_new_zipfile_serialization=False)
    return {
        "zip": zipped.getvalue(),
        "legacy": legacy.getvalue(),
        "pickle": pickle.dumps(Trap(canary), protocol=2),
    }


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, kind: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    payload = payloads(canary)[kind]
    if kind == "pickle":  # the trap is live: the unprotected reader falls into it
        pickle.loads(payload)
        assert canary.exists()
        canary.unlink()
    path.write_bytes(payload)
    refusal(path)
    path.write_bytes(sealed(payload))
    assert "not loaded" in refusal(path)
    assert not canary.exists()


@pytest.mark.parametrize("value", [[1, 2], "text", torch.ones(2), None])
def test_something_else_than_a_state(tmp_path: Path, value: object) -> None:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    (tmp_path / "x.pt").write_bytes(sealed(buffer.getvalue()))
    assert "something else than a training state" in refusal(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_damage_under_a_correct_hash_is_refused_or_harmless(tmp_path: Path) -> None:
    """Nothing but a state or the refusal comes out, whatever stands where torch expects its own format."""
    buffer = io.BytesIO()
    torch.save(example(), buffer)
    payload, random = buffer.getvalue(), np.random.default_rng(0)
    path = tmp_path / "x.pt"
    outcomes = {"loaded": 0, "refused": 0}
    pickled = payload.index(b"recipe")
    for _ in range(300):
        bad = bytearray(payload)
        bad[random.integers(max(0, pickled - 100), pickled + 900)] = random.integers(256)
        path.write_bytes(sealed(bytes(bad)))
        try:
            load_checkpoint(path)
            outcomes["loaded"] += 1
        except WeightsError:
            outcomes["refused"] += 1
    for length in range(0, len(payload), len(payload) // 40):
        path.write_bytes(sealed(payload[:length]))
        refusal(path)
    assert outcomes["refused"] > 50


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(TrainingError, match=r"No space left on device.*needs 0 MB.*--resume"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 1}


def run_with(tmp_path: Path, *places: tuple[int, str, int | None]) -> list[Path]:
    paths = [checkpoint_path(tmp_path, *place) for place in places]
    for path in paths:
        save_checkpoint(path, {"name": path.name})
    return paths


def test_checkpoints_are_ordered_by_stage_then_step(tmp_path: Path) -> None:
    expected = [(0, "pretrain", 9), (0, "pretrain", 10_000_000), (1, "adversarial", 0), (1, "adversarial", 20)]
    run_with(tmp_path, *reversed(expected), (0, "pretrain", None), (1, "adversarial", None))
    assert checkpoints(tmp_path) == [checkpoint_path(tmp_path, *place) for place in expected]
    assert checkpoints(tmp_path / "elsewhere") == []


def test_the_latest_is_never_the_best(tmp_path: Path) -> None:
    latest, _ = run_with(tmp_path, (0, "pretrain", 5), (0, "pretrain", None))
    assert latest_checkpoint(tmp_path) == (latest, {"name": latest.name})


def test_a_torn_latest_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before, torn = run_with(tmp_path, (0, "pretrain", 5), (1, "adversarial", 2))
    torn.write_bytes(torn.read_bytes()[:-7])
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == (before, {"name": before.name})
    assert str(torn) in caplog.text
    before.write_bytes(b"")
    with pytest.raises(WeightsError, match=r"no intact checkpoint.*start without --resume"):
        latest_checkpoint(tmp_path)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no intact checkpoint"):
        latest_checkpoint(tmp_path)


def test_prune_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    paths = run_with(tmp_path, *((0, "pretrain", step) for step in (1, 2, 3)), (1, "adversarial", 0))
    best = run_with(tmp_path, (0, "pretrain", None))
    prune(tmp_path, 2)
    assert checkpoints(tmp_path) == paths[2:]
    assert best[0].exists()
    prune(tmp_path, 5)
    assert checkpoints(tmp_path) == paths[2:]


def test_fill_copies_exactly() -> None:
    source, target = Generator(1, 4), Generator(1, 4)
    fill(target, source.state_dict(), "x")
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name])


def wrong_states() -> dict[str, dict[str, Any]]:
    good = Generator(1, 4).state_dict()
    bias = "tail.bias"
    return {
        "missing": {name: t for name, t in good.items() if name != bias},
        "extra": good | {"tail.extra": torch.zeros(1)},
        "renamed": {name.replace(bias, "tail.shift"): t for name, t in good.items()},
        "shape": good | {bias: torch.zeros(4)},
        "broadcastable": good | {bias: torch.zeros(1)},
        "dtype": good | {bias: torch.zeros(3, dtype=torch.float64)},
        "half": good | {bias: torch.zeros(3, dtype=torch.float16)},
        "nan": good | {bias: torch.tensor([0, float("nan"), 0])},
        "inf": good | {bias: torch.tensor([0, 0, -float("inf")])},
        "number": good | {bias: 0.0},
        "sparse": good | {bias: torch.zeros(3).to_sparse()},
        "meta": good | {bias: torch.zeros(3, device="meta")},
        "stretched": good | {bias: torch.zeros(1).expand(3)},
    }


@pytest.mark.parametrize("kind", sorted(wrong_states()))
def test_fill_refuses_and_leaves_the_module_alone(kind: str) -> None:
    module = Generator(1, 4)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(WeightsError, match=r"^some\.file") as caught:
        fill(module, wrong_states()[kind], "some.file")
    assert "\n" not in str(caught.value)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_fill_refuses_what_is_no_state() -> None:
    with pytest.raises(WeightsError, match="belongs to another architecture"):
        fill(Generator(1, 4), [], "x")  # type: ignore[arg-type]


def test_fill_names_a_value_that_is_not_finite() -> None:
    with pytest.raises(WeightsError, match=r"tail\.bias holds values that are not finite"):
        fill(Generator(1, 4), wrong_states()["nan"], "x")


def metadata(**architecture: object) -> ModelMetadata:
    return ModelMetadata("mine", 4, 10, architecture or {"blocks": 1, "features": 4, "normalisation": "none"})


def save_generator(path: Path, generator: Generator, text: str | None) -> None:
    save_file(generator.state_dict(), path, None if text is None else {METADATA_KEY: text})


def test_generator_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    generator = Generator(1, 4, "batch")
    described = metadata(blocks=1, features=4, normalisation="batch")
    save_generator(path, generator, described.to_json())
    loaded, carried = load_generator(path)
    assert carried == described
    assert loaded.state_dict().keys() == generator.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, generator.state_dict()[name])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (None, "carries no srgan metadata"),
        ("not json", "cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps({"name": "x"}), "cannot be read"),
        (metadata(blocks=2, features=4).to_json(), "another architecture"),
        (metadata(blocks=1, features=5).to_json(), "another architecture"),
        (metadata(blocks=1, features=4, attention=True).to_json(), "unknown to this version"),
        (metadata(blocks=0, features=4).to_json(), "unknown to this version"),
        (metadata(blocks=10**9, features=4).to_json(), "unknown to this version"),
        (metadata(blocks=1, features=4, normalisation="layer").to_json(), "unknown to this version"),
    ],
)
def test_generator_files_that_do_not_fit(tmp_path: Path, text: str | None, part: str) -> None:
    path = tmp_path / "x.safetensors"
    save_generator(path, Generator(1, 4), text)
    with pytest.raises(WeightsError, match=part) as caught:
        load_generator(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_generator_files(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_generator(path, Generator(1, 4), metadata().to_json())
    content = path.read_bytes()
    for length in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match="cannot be read as safetensors"):
            load_generator(path)
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load_generator(tmp_path / "absent.safetensors")
