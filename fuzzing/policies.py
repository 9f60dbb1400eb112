"""Random rule lists, as mappings with the keys of a policy file."""

from __future__ import annotations

import random
from typing import Any

import nmcompile
from fuzzing.network import Network, load
from fuzzing.products import ROLES

FORMATS = ("1:2", "2:4", "2:4", "1:4", "3:4", "2:6", "4:8", "2:8")
OPS = ("linear", "conv", "matmul", "grouped")
RANDOM = ("mvue", "approx-mvue", "uniform")
DETERMINISTIC, UNBIASED, ANY = "deterministic", "unbiased", "any"

Rules = list[dict[str, Any]]


def random_rules(network: Network, seed: int, kind: str) -> Rules:
    """One to five rules with conditions that fit the network's own paths and classes.

    Args:
        network: its modules are named.
        seed: decides everything.
        kind: ``"deterministic"`` masks alone; ``"unbiased"``: random ones for gradients,
            deterministic ones in fprop; ``"any"``.
    """
    chance = random.Random(seed)
    modules = [(n, type(m).__name__) for n, m in load(network).model.named_modules()]
    rules = [_rule(chance, modules, kind) for _ in range(chance.randint(1, 4))]
    last = _rule(chance, modules, kind)  # mostly something that matches widely
    for condition in ("module", "class", "op", "role", "dtype", "min_flops"):
        if chance.random() < 0.8 and last.get("backward") != "exact":
            last.pop(condition, None)
    return [*rules, last]


def _rule(chance: random.Random, modules: list[tuple[str, str]], kind: str) -> dict[str, Any]:
    rule = _conditions(chance, modules)
    if chance.random() < 0.08:
        return {**rule, "dense": True}
    prune = chance.choice(("gradient",) * 2 + ("activation", "weight"))
    roles = ROLES[prune]
    if kind == UNBIASED and prune != "gradient":
        rule["role"] = "fprop"
    elif chance.random() < 0.4:
        rule["role"] = chance.choice([*roles, list(roles)])
    methods = ["mse"]
    if prune == "weight":
        methods += ["transposable"] * 2
    if kind == ANY or (kind == UNBIASED and prune == "gradient"):
        methods = [*RANDOM, "mvue", *(methods if kind == ANY else [])]
    method = chance.choice(methods)
    formats = {"approx-mvue": ("2:4",), "transposable": ("2:4", "1:2", "1:4", "3:4")}
    rule |= {"prune": prune, "format": chance.choice(formats.get(method, FORMATS))}
    rule["method"] = method
    if prune != "gradient" and method not in RANDOM and chance.random() < 0.4:
        rule |= {"role": "fprop", "backward": "exact"}
    if chance.random() < 0.4:
        rule |= {"execution": chance.choice(["sparse", "sparse", "simulate", "auto"])}
        rule |= {"fallback": "simulate"}
    return rule


def _conditions(chance: random.Random, modules: list[tuple[str, str]]) -> dict[str, Any]:
    path, cls = chance.choice(modules)
    rule: dict[str, Any] = {}
    if chance.random() < 0.25:
        half = path[: len(path) // 2]
        rule["module"] = chance.choice([path, f"{half}*", f"*{path[1:]}", f"re:{path}|none"])
    if chance.random() < 0.15:
        rule["class"] = chance.choice([cls, f"{cls[:3]}*", f"[!{cls[:1]}]*"])
    if chance.random() < 0.5:
        rule["op"] = chance.choice([*OPS, ["linear", "matmul"], list(OPS), list(OPS)])
    if chance.random() < 0.1:
        rule["dtype"] = chance.choice(["float64", "float32", ["bfloat16", "float64"]])
    if chance.random() < 0.1:
        rule["min_flops"] = float(chance.choice([0, 256, 1024, 4096]))
    return rule


def policy_of(rules: Rules) -> nmcompile.Policy:
    """The package's own policy; ``simulate`` where sparse execution is impossible."""
    made = [nmcompile.Rule(**rule) for rule in rules]
    return nmcompile.Policy(rules=made, fallback="simulate")
