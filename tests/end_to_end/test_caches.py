"""Caches stay on and stay right: other paths, other policies, edited files, second processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import nmcompile

PRUNE = """schema = 1
[[rule]]
module = "{module}"
prune = "activation"
role = "fprop"
format = "{format}"
"""


@pytest.fixture(autouse=True)
def own_inductor_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


def identity(width: int = 16) -> nn.Linear:
    layer = nn.Linear(width, width, bias=False)
    nn.init.eye_(layer.weight)
    return layer


class Holder(nn.Module):
    """The same graph under another module path."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, self.name)(x)


def density(y: torch.Tensor) -> float:
    return (y != 0).float().mean().item()


def run(model: nn.Module, policy: object) -> float:
    compiled = torch.compile(model, backend="nm_sparse", options={"policy": policy})
    return density(compiled(torch.randn(8, 16)))


def test_equal_graphs_with_different_paths_get_their_own_rules(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(PRUNE.format(module="first", format="2:4"))
    assert run(Holder("first"), policy) == 0.5
    torch._dynamo.reset()  # the second model must not be served from the first one's cache entry
    with pytest.warns(nmcompile.NMWarning, match="module = 'first' matches no path"):
        assert run(Holder("second"), policy) == 1.0
    torch._dynamo.reset()
    assert run(Holder("first"), policy) == 0.5


def test_two_policies_for_one_model_side_by_side() -> None:
    model = identity()
    assert run(model, "full") == 0.5
    assert run(model, "dense") == 1.0
    assert run(model, "full") == 0.5


def test_an_edited_policy_file_takes_effect_in_the_same_process(tmp_path: Path) -> None:
    policy, model = tmp_path / "policy.toml", identity()
    options = {"policy": str(policy)}  # one dictionary for both calls, as users write it
    policy.write_text(PRUNE.format(module="*", format="2:4"))
    first = torch.compile(model, backend="nm_sparse", options=options)
    x = torch.randn(8, 16)
    assert density(first(x)) == 0.5
    policy.write_text(PRUNE.format(module="*", format="1:4"))
    second = torch.compile(model, backend="nm_sparse", options=options)
    assert density(second(x)) == 0.25
    assert options == {"policy": str(policy)}
    # What was compiled before the edit stays as it was: a file never changes a running model.
    assert density(first(x)) == 0.5


def test_a_second_compile_call_with_the_same_file_reuses_the_code(tmp_path: Path) -> None:
    policy, model, x = tmp_path / "policy.toml", identity(), torch.randn(8, 16)
    policy.write_text(PRUNE.format(module="*", format="2:4"))
    counters.clear()
    for _ in range(2):
        torch.compile(model, backend="nm_sparse", options={"policy": str(policy)})(x)
    assert counters["stats"]["unique_graphs"] == 1


def test_the_report_survives_a_warm_cache() -> None:
    model, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)), torch.randn(4, 16)
    reports = []
    for _ in range(2):
        torch._dynamo.reset()
        counters.clear()
        torch.compile(model, backend="nm_sparse")(x).sum().backward()  # the entry needs both
        reports.append(nmcompile.last_report())
    assert counters["aot_autograd"]["autograd_cache_hit"] == 1
    assert reports[0] == reports[1]
    assert reports[1].totals.pruned_sites == 5


def test_a_lost_or_broken_report_is_made_anew(tmp_path: Path) -> None:
    model, x = nn.Linear(16, 8), torch.randn(4, 16)
    expected = None
    for damage in (None, Path.unlink, lambda p: p.write_text('{"cut":')):
        if damage:
            stored = list((tmp_path / "inductor" / "nmcompile").glob("*.json"))
            assert len(stored) == 1
            damage(stored[0])
        torch._dynamo.reset()
        torch.compile(model, backend="nm_sparse")(x).sum().backward()
        expected = expected or nmcompile.last_report()
        assert nmcompile.last_report() == expected


SCRIPT = """
import json, sys, torch, nmcompile
from torch import nn
from torch._dynamo.utils import counters
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16))
compiled = torch.compile(model, backend="nm_sparse")
torch.manual_seed(1)
x = torch.randn(12, 32)
loss = compiled(x).square().mean()
loss.backward()
print(json.dumps({
    "loss": loss.item(),
    "grads": [p.grad.double().sum().item() for p in model.parameters()],
    "hit": counters["aot_autograd"]["autograd_cache_hit"],
    "report": nmcompile.last_report().to_json(),
}))
"""


@pytest.mark.slow
def test_a_second_process_with_a_warm_cache_gives_what_the_first_gave(tmp_path: Path) -> None:
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    cold, warm = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", SCRIPT],
                env=env,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for _ in range(2)
    )
    assert cold.pop("hit") == 0
    assert warm.pop("hit") == 1
    assert cold == warm
