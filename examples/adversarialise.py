"""The idea behind SRGAN, on handwritten digits: take a network that has a loss of its own, and add a judge.

A small network draws a digit for a label and some noise. Its main loss compares what it drew with any real digit
of that label; since nothing tells it which one, the best it can do is their average, a blur, just as a
super-resolution network that is trained on pixels alone gives the average of all sharp pictures that fit. Then a
discriminator joins, one of the objectives of this library adds its term, and the blur becomes handwriting:

    loss = main_weight x main loss + weight x adversarial loss

    python examples/adversarialise.py                             three objectives, two minutes on two cores
    python examples/adversarialise.py --objective dragan lsgan    any of the library's
    python examples/adversarialise.py --mnist mnist.npz           MNIST, not scikit-learn's small digits

Each objective leaves a picture, OUT/OBJECTIVE.png, with a column for every label; OUT/main-loss-alone.png shows
the blur that the main loss ends at. Two objectives stay near the blur in so few steps, which is worth seeing too:
wgan, whose clipped critic speaks softly, and began, whose balance moves slowly. The networks are a DCGAN (Radford
et al. 2016) of 16x16 pixels.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from srgan.training.adversarial import OBJECTIVES, Objective
from srgan.training.config import AdversarialRecipe

SIZE_PX, NOISE, CLASSES, BATCH = 16, 32, 10, 64


class Generator(nn.Module):
    """The main network: noise (N,32) and labels (N,) to pictures (N,1,16,16) in [0,1]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(NOISE + CLASSES, 64, 4),  # 4x4
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),  # 8x8
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),  # 16x16
            nn.Sigmoid(),
        )

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Draw a picture for each label."""
        known = torch.cat([noise, F.one_hot(labels, CLASSES).float()], dim=1)
        pictures: Tensor = self.layers(known[:, :, None, None])
        return pictures


def make_discriminator(key: str) -> nn.Module:
    """Return the judge: pictures (N,1,16,16) to logits (N,1); for BEGAN to pictures, since it is an autoencoder.

    Without BatchNorm, so that it suits every objective, those that penalise the slope at each picture included.
    """
    halvings = [
        nn.Conv2d(1, 32, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
    ]
    if key != "began":
        return nn.Sequential(*halvings, nn.Linear(64 * 4 * 4, 1))
    return nn.Sequential(
        *halvings,
        nn.Linear(64 * 4 * 4, 32),  # what an autoencoder cannot remember it cannot find real
        nn.Linear(32, 64 * 4 * 4),
        nn.Unflatten(1, (64, 4, 4)),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),
    )


def train(
    pictures: Tensor,
    labels: Tensor,
    key: str | None,
    *,
    steps: int,
    main_weight: float,
    weight: float,
    seed: int,
) -> Generator:
    """Train a generator on digits (N,1,16,16) in [0,1] with the objective `key`; None: on its main loss alone."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    generator = Generator()
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    objective: Objective | None = None
    if key:
        discriminator = make_discriminator(key)
        discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.9))
        objective = OBJECTIVES[key](AdversarialRecipe(), random)

    for _ in range(steps):
        for _ in range(objective.discriminator_steps if objective else 1):
            chosen = torch.randint(len(pictures), (BATCH,), generator=random)
            real, wanted = pictures[chosen], labels[chosen]
            drawn = generator(torch.randn(BATCH, NOISE, generator=random), wanted)
            if objective:
                descend(discriminator_optimizer, objective.discriminator_loss(discriminator, real, drawn.detach()))
                objective.after_discriminator_step(discriminator)

        loss = main_weight * F.mse_loss(drawn, real)
        if objective:
            loss = loss + weight * objective.generator_loss(discriminator, real, drawn)
        descend(optimizer, loss)
    return generator.eval()


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the gradient of `loss`, for the parameters of this optimiser alone."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def draw(generator: Generator, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return `rows` pictures of every label, (rows x 10,1,16,16), and the labels, row by row."""
    noise = torch.randn(rows * CLASSES, NOISE, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(CLASSES).repeat(rows)
    return generator(noise, labels), labels


def save_grid(pictures: Tensor, path: Path, *, zoom: int = 3) -> None:
    """Write (rows x 10,1,P,P) in [0,1] as one picture, ten in a row, dark on light."""
    rows = F.pad(pictures, [1] * 4).squeeze(1)  # (rows x 10,P+2,P+2)
    height, width = rows.shape[1:]
    sheet = rows.reshape(-1, CLASSES, height, width).permute(0, 2, 1, 3).reshape(-1, CLASSES * width)
    levels = (255 * (1 - sheet)).round().byte().numpy().repeat(zoom, axis=0).repeat(zoom, axis=1)
    Image.fromarray(levels).save(path)


def load_digits(mnist: Path | None) -> tuple[Tensor, Tensor]:
    """Return digits (N,1,16,16) in [0,1] and their labels (N,): scikit-learn's 1,797, or MNIST from `mnist`.

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
        "--objective", nargs="+", choices=OBJECTIVES, default=["nonsaturating", "lsgan", "wgan-gp"]
    )
    parser.add_argument("--steps", type=int, default=800, help="of the generator (default: %(default)s)")
    parser.add_argument("--main-weight", type=float, default=1.0, help="of the main loss (default: %(default)s)")
    parser.add_argument("--weight", type=float, default=0.2, help="of the adversarial loss (default: %(default)s)")
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
            steps=settings.steps if key else min(settings.steps, 300),  # an average is soon learnt
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
