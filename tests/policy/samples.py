"""A site and a rule that match each other, and policies as text."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nmcompile.errors import PolicyError
from nmcompile.gemm import Op, Role
from nmcompile.policy import Policy, Rule


@dataclass(frozen=True)
class FakeSite:
    path: str = "encoder.layers.0.mlp.fc1"
    module_class: str = "Linear"
    op: Op = Op.LINEAR
    role: Role = Role.WGRAD
    dtype: str = "bfloat16"
    flops: float | None = 1e9


SITE = FakeSite()


PRUNE = {"prune": "gradient", "format": "2:4"}


def rule(**keys: object) -> Rule:
    return Rule(**{**PRUNE, **keys})


def one_rule(body: str) -> str:
    return f"schema = 1\n\n[[rule]]\n{body}\n"


def message(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        Policy.loads(text, origin="policy.toml")
    return str(caught.value)
