"""Section ``training``, rehearsed: its networks, what is compared and what is left out."""

from __future__ import annotations

import time

import pytest
import torch

pytest.importorskip("typer")

from benchmarks.gpu_check.cases import training, variants
from benchmarks.gpu_check.device import Rehearsal
from benchmarks.gpu_check.events import Case, Session
from tests.benchmarks.gpu_check.rehearsal import assert_targets_are_measured, rehearse


class Perceptron(torch.nn.Module):
    """Compiles in a few seconds; the networks of the section take half a minute each."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)

    def forward(self, x, labels):
        y = self.down(torch.nn.functional.gelu(self.up(x)))
        return torch.nn.functional.cross_entropy(y.float(), labels)


def perceptron(device):
    torch.manual_seed(0)
    x = torch.randn(64, 32).bfloat16()
    return Perceptron().bfloat16(), (x, torch.randint(32, (64,)))


@pytest.mark.slow
def test_training(tmp_path, monkeypatch):
    plans = [
        training.Plan("llama", "default", (variants.DENSE, "full"), 1),
        training.Plan("llama", "reduce-overhead", (variants.DENSE, "gradients"), 1),
    ]
    monkeypatch.setattr(training, "PLAN", plans)
    monkeypatch.setitem(training.NETWORKS, "llama", (perceptron, perceptron))
    data = rehearse(tmp_path, "--inline", "--section", "training")
    case = data["sections"]["training"]["cases"]["llama/default"]
    assert case["status"] == "ok", case["error"]
    assert case["notes"]["full: sites"] == {"fprop sparse": 2, "dgrad sparse": 1, "wgrad sparse": 2}
    assert_targets_are_measured(tmp_path, "training")
    case = data["sections"]["training"]["cases"]["llama/reduce-overhead"]
    assert case["status"] == "ok", case["error"]
    assert case["notes"]["gradients: sites"]["fprop dense"] == 2


def compare(providers: tuple[str, ...], facts: dict) -> list[dict]:
    """The events of ``training.compare`` in a session that knows ``facts``."""
    seen: list[dict] = []
    case, until = Case("training", "x", lambda session: None), time.monotonic() + 60
    session = Session(Rehearsal(), seen.append, {}, facts, case, until)
    training.compare(session, "llama", "default", providers)
    return seen


def test_recipes_are_left_out_where_full_runs_nothing_sparse(monkeypatch):
    monkeypatch.setattr(training, "variant", lambda *_: pytest.fail("nothing to compare"))
    facts = {("sparse sites", "llama", "default"): 0}
    seen = compare((variants.DENSE, "gradients"), facts)
    assert [event["name"] for event in seen] == ["left out"]


def test_a_variant_that_fails_does_not_end_the_others(monkeypatch):
    def fail(provider, *_):
        raise ZeroDivisionError(provider)

    monkeypatch.setattr(training, "variant", fail)
    checks = compare((variants.DENSE, "full"), {"inductor": True})
    assert [check["name"] for check in checks] == ["inductor: runs", "full: runs"]
    assert all("ZeroDivisionError: " in check["detail"] for check in checks)


@pytest.mark.parametrize("network", training.NETWORKS)
def test_rehearsed_networks_train(network):
    model, batch = training.NETWORKS[network][True]("cpu")
    model(*batch).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    again, _ = training.NETWORKS[network][True]("cpu")
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_networks_have_their_known_sizes():
    with torch.device("meta"):
        counts = {
            "llama": training.networks.LlamaBlock(training.networks.LlamaShape()),
            "gpt2": training.networks.GPT2(training.networks.GPT2Shape()),
            "resnet": training.networks.ResNet(training.networks.ResNetShape()),
        }
    sizes = {k: sum(p.numel() for p in m.parameters()) for k, m in counts.items()}
    assert sizes["llama"] == 218_112_000  # a layer of Llama 3 8B
    assert sizes["resnet"] == 25_557_032  # torchvision's resnet50
    # GPT-2 medium has 354,823,168; the head is not tied here and the vocabulary is padded.
    assert sizes["gpt2"] == 354_823_168 + (50304 - 50257) * 1024 + 50304 * 1024
