"""The idea behind SRGAN, on handwritten digits: take a network that has a loss of its own, and add a judge.

A DCGAN (Radford et al. 2016) of 28x28 pixels draws a digit for a label and some noise. Its main loss compares what
it drew with any real digit of that label; since nothing tells it which one, the best it can do is their average, a
blur, just as a super-resolution network that is trained on pixels alone gives the average of all sharp pictures
that fit. Then a discriminator joins, an objective of this library adds its term, and the blur becomes handwriting:

    loss = main_weight x main loss + weight x adversarial loss

    python examples/adversarialise.py                             three objectives, a few minutes on two cores
    python examples/adversarialise.py --objective dragan lsgan    any of the library's
    python examples/adversarialise.py --mnist mnist.npz           MNIST, not scikit-learn's digits, enlarged

Each objective leaves a picture, OUT/OBJECTIVE.png, with a column for every label; OUT/main-loss-alone.png shows
the blur that the main loss ends at. `srgan train` plays the same for this file, a main network of its own:

    srgan train examples/digits.toml --data mnist.npz --run runs/digits      or --data digits, for scikit-learn's
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from srgan.training import adversarialise
from srgan.training.adversarial import OBJECTIVES
from srgan.training.config import Recipe, validated
from srgan.training.games import Batches

SIZE_PX, NOISE, CLASSES, BATCH = 28, 64, 10, 64


class Generator(nn.Module):
    """The main network: noise (N,64) and labels (N,) to pictures (N,1,28,28) in [0,1]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(NOISE + CLASSES, 64, 7),  # 7x7
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),  # 14x14
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),  # 28x28
            nn.Sigmoid(),
        )

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Draw a picture for each label."""
        known = torch.cat([noise, F.one_hot(labels, CLASSES).float()], dim=1)
        pictures: Tensor = self.layers(known[:, :, None, None])
        return pictures


# What a main network consists of; `srgan train` asks for these four by name.


def network() -> nn.Module:
    """Return the network that is to be trained."""
    return Generator()


def discriminator(objective: str) -> nn.Module:
    """Return the judge: pictures (N,1,28,28) to logits (N,1); for BEGAN to pictures, since it is an autoencoder.

    Without BatchNorm, so that it suits every objective, those that penalise the slope at each picture included.
    """
    halvings = [
        nn.Conv2d(1, 32, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
    ]
    if objective != "began":
        return nn.Sequential(*halvings, nn.Linear(64 * 7 * 7, 1))
    return nn.Sequential(
        *halvings,
        nn.Linear(64 * 7 * 7, 32),  # what an autoencoder cannot remember it cannot find real
        nn.Linear(32, 64 * 7 * 7),
        nn.Unflatten(1, (64, 7, 7)),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),
    )


def loss(drawn: Tensor, real: Tensor) -> Tensor:
    """Return the main loss: the mean squared difference from a real digit of the same label."""
    return F.mse_loss(drawn, real)


def batches(data: Sequence[str], random: torch.Generator) -> Batches:
    """Yield ((noise, labels), digits) without end; `data`: what `--data` says, a file of MNIST, or "digits"."""
    pictures, labels = load_digits(None if list(data) == ["digits"] else Path(data[0]))
    return drawn_from(pictures, labels, random)


def drawn_from(pictures: Tensor, labels: Tensor, random: torch.Generator) -> Batches:
    """Yield the same of digits (N,1,28,28) and their labels (N,)."""
    while True:
        chosen = torch.randint(len(pictures), (BATCH,), generator=random)
        yield (torch.randn(BATCH, NOISE, generator=random), labels[chosen]), pictures[chosen]


def sheet(generator: Generator) -> np.ndarray:
    """Return eight drawings of every label as one picture, (H,W,3)."""
    return grid_of(draw(generator, 8, 0)[0])[:, :, None].repeat(3, axis=2)


def recipe_of(key: str | None, *, steps: int, main_weight: float, weight: float, seed: int, rate: float) -> Recipe:
    """Return the recipe of a game with the objective `key`, or of as long a training on the main loss alone."""
    adam = {"learning_rate": rate, "final_learning_rate": rate, "betas": (0.5, 0.999), "clip_norm": 0.0}  # DCGAN's
    values = {
        "seed": seed,
        "precision": "fp32",
        "main_network": __file__,
        "objective": key or "nonsaturating",
        "losses": {"content": {"weight": main_weight}, "adversarial": {"weight": weight}},
        "pretrain": adam | {"steps": 0 if key else steps},
        "adversarial": adam | {"steps": steps if key else 0, "discriminator_learning_rate": rate},
        "log_steps": 100,
    }
    return validated(values, "digits")


def train(
    pictures: Tensor,
    labels: Tensor,
    key: str | None,
    *,
    steps: int,
    main_weight: float,
    weight: float,
    seed: int,
    rate: float = 1e-4,
) -> Generator:
    """Train a generator on digits (N,1,28,28) in [0,1] with the objective `key`; None: on its main loss alone."""
    torch.manual_seed(seed)
    generator, judge = Generator(), discriminator(key) if key else None
    recipe = recipe_of(key, steps=steps, main_weight=main_weight, weight=weight, seed=seed, rate=rate)
    random = torch.Generator().manual_seed(seed)
    adversarialise(generator, loss, drawn_from(pictures, labels, random), judge, recipe)
    return generator


@torch.no_grad()
def draw(generator: Generator, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return `rows` pictures of every label, (rows x 10,1,16,16), and the labels, row by row."""
    noise = torch.randn(rows * CLASSES, NOISE, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(CLASSES).repeat(rows)
    return generator(noise, labels), labels


def grid_of(pictures: Tensor) -> np.ndarray:
    """Return (rows x 10,1,P,P) in [0,1] as one picture (H,W) of bytes, ten in a row, dark on light."""
    rows = F.pad(pictures, [1] * 4).squeeze(1)  # (rows x 10,P+2,P+2)
    height, width = rows.shape[1:]
    sheet_ = rows.reshape(-1, CLASSES, height, width).permute(0, 2, 1, 3).reshape(-1, CLASSES * width)
    return (255 * (1 - sheet_)).round().byte().numpy()


def save_grid(pictures: Tensor, path: Path, *, zoom: int = 2) -> None:
    """Write what `grid_of` makes of `pictures`, `zoom` times as large."""
    Image.fromarray(grid_of(pictures).repeat(zoom, axis=0).repeat(zoom, axis=1)).save(path)


def load_digits(mnist: Path | None) -> tuple[Tensor, Tensor]:
    """Return digits (N,1,28,28) in [0,1] and their labels (N,): scikit-learn's 1,797, or MNIST from `mnist`.

    `mnist`: an .npz file with x_train and y_train, or the IDX file train-images... with train-labels... beside
    it, both perhaps compressed (.gz).
    """
    if mnist is None:
        from sklearn.datasets import load_digits as small_digits

        images, labels = small_digits(return_X_y=True)
        images = images.reshape(-1, 8, 8) / 16
    elif mnist.suffix == ".npz":
        with np.load(mnist) as file:
            images, labels = file["x_train"] / 255, file["y_train"]
    else:
        images = read_idx(mnist) / 255
        labels = read_idx(mnist.with_name(mnist.name.replace("images", "labels").replace("idx3", "idx1")))
    pictures = torch.as_tensor(images, dtype=torch.float32)[:, None]
    resized = F.interpolate(pictures, size=(SIZE_PX, SIZE_PX), mode="bicubic", antialias=True)
    return resized.clamp(0, 1), torch.as_tensor(np.array(labels), dtype=torch.int64)


def read_idx(path: Path) -> np.ndarray:
    """Return the array of an IDX file of bytes: two zeros, type 8, the number of sizes, big-endian sizes, data."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if data[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} is not an IDX file of bytes")
    sizes = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sizes)


def main(arguments: list[str] | None = None) -> None:
    """Train with each objective in turn and write its digits."""
    parser = argparse.ArgumentParser(description="Add a judge to a network that draws digits.")
    parser.add_argument(
        "--objective", nargs="+", choices=OBJECTIVES, default=["nonsaturating", "lsgan", "relativistic-paired"]
    )
    parser.add_argument("--steps", type=int, default=2000, help="of the generator (default: %(default)s)")
    parser.add_argument("--main-weight", type=float, default=1.0, help="of the main loss (default: %(default)s)")
    parser.add_argument("--weight", type=float, default=1.0, help="of the adversarial loss (default: %(default)s)")
    parser.add_argument("--mnist", type=Path, help="MNIST as .npz or IDX (default: scikit-learn's digits)")
    parser.add_argument("--out", type=Path, default=Path("digits"), help="folder (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="digits of each label (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args(arguments)

    pictures, labels = load_digits(settings.mnist)
    settings.out.mkdir(parents=True, exist_ok=True)
    for key in [None, *settings.objective]:
        began = time.monotonic()
        generator = train(
            pictures,
            labels,
            key,
            steps=settings.steps if key else min(settings.steps, 600),  # an average is soon learnt
            main_weight=settings.main_weight,
            weight=settings.weight,
            seed=settings.seed,
        )
        path = settings.out / f"{key or 'main-loss-alone'}.png"
        save_grid(draw(generator, settings.rows, settings.seed)[0], path)
        print(f"{path}  {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small lose more by sharing work than they gain
    main()
