"""One network under one policy, and what a check says of it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from fuzzing.generate import generate
from fuzzing.network import Network, Written
from fuzzing.policies import ANY, DETERMINISTIC, UNBIASED, Rules, random_rules

#: Share of the cases without code generation that are traced with symbolic sizes.
DYNAMIC = 0.12


@dataclass(frozen=True)
class Case:
    """``kind`` is that of the policy's masks; ``compiled``: with code generation.

    ``dynamic``: sizes are symbolic wherever Dynamo can make them so.
    """

    seed: int
    network: Network | Written
    rules: Rules
    kind: str = DETERMINISTIC
    compiled: bool = False
    dynamic: bool = False

    @classmethod
    def of(cls, seed: int, compiled_share: float = 0.0) -> Case:
        """The case of this seed, always the same for one share."""
        chance = random.Random(f"case {seed}")
        kind = chance.choices((DETERMINISTIC, UNBIASED, ANY), (8, 1, 1))[0]
        compiled = chance.random() < compiled_share
        dynamic = not compiled and chance.random() < DYNAMIC
        network = generate(seed)
        rules = random_rules(network, seed, kind)
        if dynamic:  # the FLOPs of symbolic sizes are unknown, and count as many
            rules = [{k: v for k, v in rule.items() if k != "min_flops"} for rule in rules]
        return cls(seed, network, rules, kind, compiled, dynamic)


class Find(AssertionError):
    """A check failed. ``check`` is its name; ``upstream``: without the package it fails as well."""

    def __init__(self, check: str, message: str, upstream: bool = False) -> None:
        super().__init__(f"{check}: {message}")
        self.check = check
        self.upstream = upstream


@dataclass
class Tally:
    """How often each check was made, and how many products it saw."""

    checks: Counter[str] = field(default_factory=Counter)
    products: int = 0
    pruned: int = 0
