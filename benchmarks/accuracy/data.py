"""What training needs of data, and text: Python's standard library, which is installed anyway."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Data(Protocol):
    """Training batches and a validation set.

    Shapes are fixed, so that every arm compiles once.
    """

    @property
    def about(self) -> str:
        """Which data, how many, and how they are split."""

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless (input, target) batches; equal seeds give equal batches."""

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The validation set in chunks of one shape."""

    def digest(self) -> str:
        """Of the content: equal digests train alike."""


@dataclass(frozen=True)
class Text:
    """The source of Python's standard library as bytes, split by file."""

    train: Tensor
    held_out: Tensor
    batch: int
    context: int
    chunks: int = 4
    chunk: int = 64

    @classmethod
    def load(cls, batch: int, context: int, files: list[Path] | None = None) -> Text:
        """Of the standard library, or of these ``files``."""
        train, held_out = split_files(stdlib_files() if files is None else files)
        return cls(_bytes_of(train), _bytes_of(held_out), batch, context)

    @property
    def about(self) -> str:
        return (
            f"bytes of Python's standard library: {len(self.train)} to train on and "
            f"{len(self.held_out)} of files held out whole (about one in eight), batches of "
            f"{self.batch} windows of {self.context} bytes"
        )

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        last = len(self.train) - self.context
        while True:
            yield self._windows(self.train, torch.randint(last, (self.batch,), generator=generator))

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows spread evenly over the held-out files, without overlap."""
        count = self.chunks * self.chunk
        step = (len(self.held_out) - 1) // count
        if step < self.context:
            raise ValueError(f"{len(self.held_out)} held-out bytes are too few for {count} windows")
        for starts in (torch.arange(count) * step).split(self.chunk):
            yield self._windows(self.held_out, starts)

    def digest(self) -> str:
        return digest_of(self.train, self.held_out, (self.batch, self.context, self.chunks))

    def _windows(self, text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        window = text[starts[:, None] + torch.arange(self.context + 1)].long()
        return window[:, :-1], window[:, 1:]


def stdlib_files(limit: int = 3_000_000) -> list[Path]:
    """Top-level modules of the standard library, about ``limit`` bytes of them.

    Which ones is decided by a hash of the file's name, so that a file that another release of
    Python adds or removes does not shuffle the rest. Sorted by name.
    """
    found = Path(sysconfig.get_path("stdlib")).glob("*.py")
    chosen, total = [], 0
    for path in sorted(found, key=lambda path: (_hash(path), path.name)):
        if total >= limit:
            break
        chosen.append(path)
        total += path.stat().st_size
    return sorted(chosen)


def split_files(files: list[Path], one_in: int = 8) -> tuple[list[Path], list[Path]]:
    """(training files, validation files): about one file in ``one_in`` is held out, by name."""
    held_out = [path for path in files if _hash(path) % one_in == 0]
    return [path for path in files if path not in held_out], held_out


def digest_of(*parts: object) -> str:
    """Twelve hexadecimal digits of tensors and whatever else prints the same each time."""
    found = hashlib.sha256()
    for part in parts:
        content = part.numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode()
        found.update(content)
    return found.hexdigest()[:12]


def _hash(path: Path) -> int:
    return int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:8])


def _bytes_of(files: list[Path]) -> Tensor:
    text = b"\0".join(path.read_bytes() for path in files)  # 0 occurs in no source file
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())
