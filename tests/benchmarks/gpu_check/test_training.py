"""Training steps, rehearsed: its networks, what is compared and what is left out."""

from __future__ import annotations

import time

import pytest
import torch

pytest.importorskip("typer")

from benchmarks.gpu_check.cases import training, variants
from benchmarks.gpu_check.cases.profile import by_class, class_of
from benchmarks.gpu_check.cases.variants import DENSE, SIMULATED
from benchmarks.gpu_check.device import Launch, Rehearsal
from benchmarks.gpu_check.events import Case, Session
from benchmarks.gpu_check.targets import PRODUCTS, SPARSE
from tests.benchmarks.gpu_check.rehearsal import (
    assert_targets_are_measured,
    rehearse,
    statuses,
)


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
    same, compiled = ("llama", "llama", "default"), []
    plans = [training.Plan(*same, (name,), 1) for name in (variants.DENSE, "full", SIMULATED)]
    plans.append(training.Plan("graphs", "llama", "reduce-overhead", (DENSE, "gradients"), 1))
    monkeypatch.setattr(training, "PLAN", plans)
    monkeypatch.setitem(training.NETWORKS, "llama", (perceptron, perceptron))
    original = training.variant
    monkeypatch.setattr(training, "variant", lambda *a: compiled.append(a[:2]) or original(*a))
    seen = [Launch("triton_poi", at, 1e-3, (8, 1, 1)) for at in (0.0, 3e-3)]
    monkeypatch.setattr(Rehearsal, "profile", lambda self, run: seen)
    data = rehearse(tmp_path, "--inline", "--section", "llama")
    found = data["sections"]["llama"]["cases"]
    assert statuses(data) == {f"llama/{name}": "ok" for name in found}
    case = found["llama/default/full"]
    assert case["notes"]["full: sites"] == {"fprop sparse": 2, "dgrad sparse": 1, "wgrad sparse": 2}
    figures = {row["metric"]: row["p50"] for row in case["rows"] if row["provider"] == "full"}
    assert (figures[SPARSE], figures[PRODUCTS]) == (5, 5)
    assert figures["elementwise: launches"] == 2
    assert figures["share of a step in kernels"] == pytest.approx(0.5)
    assert_targets_are_measured(tmp_path, "llama")
    (case,) = [c for name, c in found.items() if SIMULATED in name]
    assert case["notes"]["full, simulated: sites"]["fprop simulate"] == 2
    # The dense one is there for all cases that are compared with it.
    assert compiled == [(name, "default") for name in (DENSE, "full", SIMULATED)]
    data = rehearse(tmp_path, "--inline", "--section", "graphs", "--only", "graphs/llama*")
    (case,) = [c for n, c in data["sections"]["graphs"]["cases"].items() if "gradients" in n]
    assert case["status"] == "ok", case["error"]
    assert case["notes"]["gradients: sites"]["fprop dense"] == 2


def compare(providers: tuple[str, ...], facts: dict) -> list[dict]:
    """The events of ``training.compare`` in a session that knows ``facts``."""
    seen: list[dict] = []
    case, until = Case("training", "x", lambda session: None), time.monotonic() + 60
    session = Session(Rehearsal(), seen.append, {}, facts, case, until)
    training.compare(session, "llama", "default", providers)
    return seen


def test_a_variant_that_fails_does_not_end_the_others(monkeypatch):
    monkeypatch.setattr(training, "_kept_dense", lambda *_: training._Trained(None, [1.0]))
    monkeypatch.setattr(training, "_report_step", lambda *_: None)

    def variant(provider, *_):
        raise ZeroDivisionError(provider)

    monkeypatch.setattr(training, "variant", variant)
    checks = compare((variants.DENSE, "full", "weights"), {"inductor": True})
    assert [check["name"] for check in checks] == ["full: runs", "weights: runs"]
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


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("compress_both_mvue_2_4_mul_0", "compress and masks"),
        ("triton_poi_fused_mm_mul_3", "elementwise"),
        ("sm90_xmma_sparse_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x256x64", "sparse product"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "dense product"),
        ("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_TNT", "dense product"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "convolution"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob", "attention"),
        ("void at::native::multi_tensor_apply_kernel<...>", "optimizer"),
        ("Memcpy DtoD (Device -> Device)", "copies and fills"),
        ("void at::native::embedding_dense_backward", "other"),
    ],
)
def test_kernels_are_classified_by_name(kernel, name):
    assert class_of(kernel) == name


def test_classes_are_summed():
    seconds = {"triton_a": 1.0, "triton_b": 2.0, "nvjet_x": 5.0, "nvjet_y": 0.5}
    launches = [Launch(name, 0.0, each, ()) for name, each in seconds.items()] * 2
    classes = {"dense product": (11.0, 4), "elementwise": (6.0, 4)}
    assert by_class(launches) == classes
    assert list(by_class(launches)) == list(classes)
    # The library's kernels may be named like dense ones.
    assert by_class(launches, {"nvjet_y"})["sparse product"] == (1.0, 2)
