"""Images: scikit-learn's digits, and folders of MNIST's or CIFAR-10's files."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.accuracy.data import digest_of

#: Digits that are not trained on.
HELD_OUT = 540
#: Where Debian's package dataset-fashion-mnist puts its files.
FASHION = Path("/usr/share/datasets/fashion-mnist")

_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte")  # fmt: skip
_CIFAR = (tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",))

Labelled = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Images:
    """Images [N, C, H, W] in classes [N], standardised as the training set is.

    The last partial batch of an epoch is dropped.
    """

    name: str
    train: Labelled
    held_out: Labelled
    batch: int

    @classmethod
    def standardised(cls, name: str, train: Labelled, held_out: Labelled, batch: int) -> Images:
        """Of raw pixels."""
        mean, std = train[0].mean(), train[0].std()
        first, second = (((x - mean) / std, y) for x, y in (train, held_out))
        return cls(name, first, second, batch)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.train[0].shape[1:]
        return channels, height, width

    @property
    def about(self) -> str:
        sizes = "x".join(map(str, self.shape))
        return (
            f"{self.name}: {len(self.train[1])} images of {sizes} to train on and "
            f"{len(self.held_out[1])} held out, batches of {self.batch}"
        )

    def batches(self, seed: int) -> Iterator[Labelled]:
        images, labels = self.train
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(labels), generator=generator)
            for chosen in order[: len(order) // self.batch * self.batch].split(self.batch):
                yield images[chosen], labels[chosen]

    def validation(self) -> Iterator[Labelled]:
        """In chunks of at most 1,000; images that would make a smaller last one are left out."""
        size = min(1000, len(self.held_out[1]))
        count = len(self.held_out[1]) // size
        for part in range(count):
            chosen = slice(part * size, (part + 1) * size)
            yield self.held_out[0][chosen], self.held_out[1][chosen]

    def digest(self) -> str:
        return digest_of(*self.train, *self.held_out, self.batch)


def digits(batch: int) -> Images:
    """Scikit-learn's handwritten digits: 1797 images of 8x8 pixels in ten classes.

    A fixed stratified split holds out 540 of them.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(found.target)
    train, rest = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, random_state=0, stratify=found.target
    )
    return Images.standardised(
        "scikit-learn's digits", (images[train], labels[train]), (images[rest], labels[rest]), batch
    )


@functools.lru_cache(maxsize=1)  # a worker's arms share it
def from_folder(batch: int, pool: int, folder: Path = FASHION) -> Images:
    """Images from MNIST's files (IDX, gzipped or not) or CIFAR-10's binary batches.

    Args:
        batch: images in a batch.
        pool: means over squares of this many pixels are taken, as 2 makes 14x14 of 28x28.
        folder: where the files lie.

    Raises:
        ValueError: they are not there, or no such files.

    Reading takes seconds, so the last ones read are kept.
    """
    if not folder.is_dir():
        install = " (apt-get install dataset-fashion-mnist)" if folder == FASHION else ""
        raise ValueError(
            f"there is no folder {folder}{install}: give one with MNIST's or CIFAR-10's files, "
            "--data FOLDER"
        )
    if all((folder / name).exists() for names in _CIFAR for name in names):
        train, rest = (_together([_cifar(folder / name) for name in names]) for names in _CIFAR)
    else:
        images, labels, more_images, more_labels = (_idx(folder, name) for name in _IDX)
        train, rest = _labelled(images, labels, folder), _labelled(more_images, more_labels, folder)
    first, second = ((F.avg_pool2d(x.float(), pool), y.long()) for x, y in (train, rest))
    return Images.standardised(folder.resolve().name, first, second, batch)


def _idx(folder: Path, name: str) -> Tensor:
    """A file of unsigned bytes in LeCun's IDX format: 0, 0, 8, dimensions, sizes, content."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
    if path is None:
        pickled = " (of CIFAR-10 take the binary version)" if list(folder.glob("*_batch*")) else ""
        raise ValueError(
            f"{folder} has neither {name}[.gz] nor {_CIFAR[1][0]} and what belongs to it{pickled}"
        )
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    dims = content[3] if len(content) > 3 and content[:3] == b"\0\0\x08" else 0
    sizes = np.frombuffer(content[4 : 4 + 4 * dims], ">u4").tolist()
    data = content[4 + 4 * dims :]
    if not sizes or len(data) != np.prod(sizes):
        raise ValueError(f"{path} is no whole IDX file of unsigned bytes")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(sizes)


def _labelled(images: Tensor, labels: Tensor, folder: Path) -> Labelled:
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        raise ValueError(
            f"{folder}: images {list(images.shape)} and labels {list(labels.shape)} do not fit"
        )
    return images.unsqueeze(1), labels


def _cifar(path: Path) -> Labelled:
    """CIFAR-10's binary version: for each image its class and 3 x 32 x 32 bytes."""
    content = path.read_bytes()
    if not content or len(content) % 3073:
        raise ValueError(f"{path} is no whole file of CIFAR-10: 3,073 bytes an image")
    rows = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, 3073)
    return rows[:, 1:].view(-1, 3, 32, 32), rows[:, 0]


def _together(parts: list[Labelled]) -> Labelled:
    images, labels = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(labels)
