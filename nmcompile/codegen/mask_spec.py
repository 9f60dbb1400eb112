"""``MaskSpec``: everything that the text of a mask kernel depends on, and nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.masks.formats import Method

STORAGE = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class MaskSpec(BaseModel):
    """What the text of a mask kernel depends on; sizes and strides are its arguments.

    Attributes:
        n, m, method: how survivors are chosen.
        dtype: of the operand, float32, bfloat16 or float16.
        mask: whether the keep mask is written, else the pruned values.
        lie: how the elements of a block lie: beside each other (``"runs"``), or those of other
            blocks do (``"across"``); ``"tiles"`` for transposable masks.
        ranks: the numbers of dimensions before, along and behind the blocks, or before a tile.
        swapped: whether a tile's columns are what lies in memory line by line.
        computed: what computes the operand, where it is not read as it is: a spec that packs
            nothing, and that may keep the operand itself (``Operand.keep_dense``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    m: int
    method: str
    dtype: str
    mask: bool
    lie: Literal["runs", "across", "tiles"]
    ranks: tuple[int, ...]
    swapped: bool = False
    computed: KernelSpec | None = None

    @property
    def name(self) -> str:
        """A readable name, unique up to the digest."""
        what = "keep_mask" if self.mask else "prune"
        name = f"{what}_{self.lie}_{self.method.replace('-', '_')}_{self.n}_{self.m}"
        return f"{name}_{self.computed.word}" if self.computed else name

    @property
    def inputs(self) -> list[str]:
        """The kernel's names of what it reads, then of the operand where that is written too."""
        if self.computed is None:
            return ["x"]
        return [i.name for i in self.computed.inputs] + ["dense"] * self.keeps_dense

    @property
    def keeps_dense(self) -> bool:
        """Whether the operand itself is a result."""
        return self.computed is not None and self.computed.dense_results > 0

    @property
    def storage(self) -> str:
        """The operand's type as ``codegen.device`` names it."""
        return STORAGE[getattr(torch, self.dtype)]

    @property
    def random(self) -> bool:
        """Whether the kernel draws random numbers."""
        return Method(self.method).random

    @property
    def digest(self) -> str:
        """Of the content; 16 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The spec as one line of JSON."""
        return json.dumps(self.model_dump(mode="json"), separators=(",", ":"), sort_keys=True)
