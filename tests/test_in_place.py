"""``nmcompile.compile``: with what each module is compiled; ``end_to_end`` runs what it gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import nmcompile
from nmcompile import ArgumentError, OptionError, Policy, Rule


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


class Other(Block):
    pass


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block(), Other(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


Calls = list[tuple[nn.Module, dict[str, Any]]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Every ``module.compile()``, which compiles nothing here."""
    made: Calls = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **keys: made.append((self, keys)))
    return made


def test_a_whole_model(calls: Calls) -> None:
    model, options = Net(), {"max_fusion_size": 8}
    assert nmcompile.compile(model, "full", dynamic=True, options=options) is model
    ((module, keys),) = calls
    assert module is model
    assert keys == {
        "backend": nmcompile.nm_sparse,  # which a checkout that nobody installed has, too
        "dynamic": True,
        "fullgraph": False,
        "options": {"max_fusion_size": 8, "policy": Policy.recipe("full")},
    }
    assert options == {"max_fusion_size": 8}


def regions(calls: Calls) -> list[tuple[str, ...]]:
    """Of each compiled module, in order: whose code it shares."""
    return [keys["options"]["nm.region"] for _, keys in calls]


def test_blocks_of_one_class_share_their_code(calls: Calls) -> None:
    model = nmcompile.compile(Net(), each="layers.*", fullgraph=True)
    assert {m for m, _ in calls} == set(model.layers)
    same, alone = ("layers.0", "layers.1", "layers.3"), ("layers.2",)
    assert regions(calls) == [same, same, same, alone]
    assert all(keys["fullgraph"] for _, keys in calls)


@pytest.mark.parametrize(
    ("module", "first"),
    [
        ("layers.0.*", ("layers.0",)),
        ("layers.[013].fc", ("layers.0", "layers.1", "layers.3")),
        ("*.fc", ("layers.0", "layers.1", "layers.3")),
        ("layers.1", ("layers.0", "layers.3")),
    ],
)
def test_blocks_that_rules_treat_differently_do_not(
    module: str, first: tuple[str, ...], calls: Calls
) -> None:
    policy = Policy(rules=[Rule(module=module, dense=True)], extends="full")
    nmcompile.compile(Net(), policy, each="re:layers\\.\\d")
    assert regions(calls)[0] == first
    assert sorted({p for paths in regions(calls) for p in paths}) == [
        f"layers.{i}" for i in range(4)
    ]
    assert {keys["options"]["policy"] for _, keys in calls} == {policy}


@pytest.mark.parametrize("policy", ["dense", {"rule": [{"dense": True}]}, Policy(rules=[])])
def test_the_policy_may_be_one_of_the_options(calls: Calls, policy: Any) -> None:
    nmcompile.compile(Net(), options={"policy": policy, "nm.autotune": False})
    ((_, keys),) = calls
    assert keys["options"] == {"policy": Policy.resolve(policy), "nm.autotune": False}


def test_a_policy_that_is_given_twice_is_an_error(calls: Calls) -> None:
    with pytest.raises(OptionError, match="a policy is given twice, as an argument and in options"):
        nmcompile.compile(Net(), "full", options={"policy": "full"})
    nmcompile.compile(Net(), "dense", options={"policy": None})
    assert calls[0][1]["options"]["policy"] == Policy.recipe("dense")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": lambda x: x}, ArgumentError, r'torch.compile\(..., backend="nm_sparse"\)'),
        (
            {"model": torch.jit.script(nn.Linear(4, 4))},
            ArgumentError,
            "that was scripted or traced",
        ),
        ({"model": Net}, ArgumentError, "changes a module in place"),
        ({"options": 3}, ArgumentError, "options = 3: write a mapping"),
        ({"each": 3}, ArgumentError, "each = 3: write a glob in quotes"),
        ({"each": "layer.*"}, OptionError, "matches no module: did you mean 'layers.3'"),
        ({"each": "re:(a"}, OptionError, "invalid regular expression '\\(a': missing"),
        ({"each": "re:(?=a)"}, OptionError, "it looks ahead or behind"),
    ],
)
def test_what_cannot_be_compiled(
    calls: Calls, arguments: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        nmcompile.compile(**({"model": Net()} | arguments))
    assert calls == []
