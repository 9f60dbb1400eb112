"""Weight masks in a checkpoint: equal outputs of the plain model, or one sentence why not.

What was pruned comes from ``explain``, which compiles nothing, but for the tests marked slow.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmcompile
from nmcompile import ArgumentError, ExportError, Policy, Rule, Schedule, export
from nmcompile.functional import prune
from nmcompile.report.report import Report

safetensors = pytest.importorskip("safetensors.torch", reason="needs nmcompile[export]")

X = torch.randn(8, 16, generator=torch.Generator().manual_seed(3))
MSE = Policy(rules=[Rule(role="fprop", prune="weight", format="1:4", method="mse")])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.short, self.down = nn.Linear(16, 24), nn.Linear(24, 2), nn.Linear(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.short(torch.relu(self.up(x))))


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    """Let ``export`` take what was pruned from ``explain``: (model, x, policy) -> report."""

    def use(model: nn.Module, x: Tensor, policy: Any = "weights", **keys: Any) -> Report:
        report = nmcompile.explain(model, x, policy=policy, **keys)
        monkeypatch.setattr("nmcompile.checkpoints.export.report_of_model", lambda model: report)
        return report

    return use


Explained = Callable[..., Report]


def test_pruned_weights_are_masked_and_listed_and_all_else_is_as_it_was(
    explained: Explained, tmp_path: Path
) -> None:
    model = Net()
    explained(model, X)
    made = export(model, tmp_path / "net.safetensors")
    plain = Net()
    plain.load_state_dict(safetensors.load_file(made.path))
    kept = prune(model.up.weight.detach(), "2:4", (0, 1), "transposable")
    assert torch.equal(plain.up.weight, kept)
    for name in ("up.bias", "short.bias", "down.weight", "down.bias"):
        assert torch.equal(plain.get_parameter(name), model.get_parameter(name))
    assert "short.weight" in {layer.name for layer in made.layers}
    listed = json.loads(made.listing.read_text())
    assert made.listing.name == "net.layers.json"
    first = listed["layers"][0]
    assert first | {"rule": 0} == {
        "name": "up.weight",
        "module": "up",
        "shape": [24, 16],
        "format": "2:4",
        "method": "transposable",
        "along": [1],
        "kept": 0.5,
        "rule": 0,
    }
    (dense,) = listed["dense"]
    assert dense["module"] == "down"
    assert "fewer than M = 4" in dense["reason"]
    assert Policy.loads(listed["policy"]) == Policy.recipe("weights")
    assert str(made).startswith(f"{made.path}: 2 weights pruned (2:4), listed in net.layers.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.layers.json", "net.safetensors"]


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 8, 3),
        nn.Conv2d(16, 24, 3, groups=4),
        nn.Conv2d(24, 12, 3, groups=2).to(memory_format=torch.channels_last),
        nn.ConvTranspose2d(16, 12, 3),
        nn.ConvTranspose2d(12, 24, 3, groups=2),  # 6 channels a group: blocks do not cross it
        nn.Conv1d(16, 8, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("policy", ["weights", MSE])
def test_convolutions(conv: nn.Module, policy: Any, explained: Explained, tmp_path: Path) -> None:
    image = torch.randn(2, conv.in_channels, *[6] * (conv.weight.dim() - 2))
    report = explained(conv, image, policy)
    (site,) = [s for s in report.sites if s.weight]
    made = export(conv, tmp_path / "conv.safetensors")
    loaded = safetensors.load_file(made.path)["weight"]
    # The pruned value is what the rewritten graph multiplies: run it on this weight.
    assert expected(report, conv.weight.detach()).equal(loaded)
    share = {"2:4": 0.5, "1:4": 0.25}[str(site.format)]
    assert made.layers[0].kept <= share + 0.15  # ragged blocks keep more


def expected(report: Report, weight: Tensor) -> Tensor:
    """The forward mask of one weight, as the graph calls it, written out here."""
    (site,) = [s for s in report.sites if s.weight]
    row = site.weight
    assert row is not None
    tiles = site.method == "transposable"
    groups, shared = (
        (row.tile_groups, row.tile_dims[0]) if tiles else (row.groups, row.dims[0])
    )  # fmt: skip
    parts = weight.chunk(groups, shared)  # each group by itself
    dims: Any = (0, 1) if tiles else row.dims[0]
    strided = [p.clone(memory_format=torch.contiguous_format) for p in parts]
    pruned = [prune(p, str(site.format), dims, str(site.method)) for p in strided]
    return torch.cat(pruned, shared)


def test_the_mask_is_that_of_the_type_in_which_the_product_runs(
    explained: Explained, tmp_path: Path
) -> None:
    model = nn.Linear(16, 8)
    # In bfloat16 all of a block are equal, and the first survives; in float32 the last would.
    with torch.no_grad():
        model.weight.copy_(1 + 1e-5 * torch.arange(16))
    with torch.autocast("cpu", torch.bfloat16):
        explained(model, X, MSE)
    made = export(model, tmp_path / "net.safetensors")
    kept = safetensors.load_file(made.path)["weight"] != 0
    assert torch.equal(kept, torch.tensor([True, False, False, False]).repeat(8, 4))


def test_a_tensor_of_two_names_is_written_under_both(explained: Explained, tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    model = Tied()
    explained(model, X)
    loaded = safetensors.load_file(export(model, tmp_path / "t.safetensors").path)
    assert torch.equal(loaded["a.weight"], loaded["b.weight"])
    assert (loaded["a.weight"] != 0).float().mean() == 0.5
    Tied().load_state_dict(loaded)


def test_a_weight_that_is_also_read_unpruned_is_refused(
    explained: Explained, tmp_path: Path
) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(16, 16), nn.Linear(16, 16, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.tokens(x))

    model, x = Tied(), torch.arange(8)[None]
    explained(model, x)
    with pytest.raises(ExportError, match=r"weight of head cannot .* read as it is, by .*embed"):
        export(model, tmp_path / "t.safetensors")
    assert list(tmp_path.iterdir()) == []
    explained(model, x, Policy(rules=[Rule(module="head", dense=True)], extends="weights"))
    made = export(model, tmp_path / "t.safetensors")  # nothing else is left to prune
    assert made.layers == ()


def test_experts_with_a_weight_each_row(explained: Explained, tmp_path: Path) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(2, 16, 8))  # [E, I, O]

        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm(x.view(2, -1, 16), self.w)

    model = Experts()
    explained(model, torch.randn(16, 16))
    made = export(model, tmp_path / "e.safetensors")
    assert made.layers[0].along == (1,)
    loaded = safetensors.load_file(made.path)["w"]
    assert torch.equal(loaded, prune(model.w.detach(), "2:4", (1, 2), "transposable"))


@pytest.mark.parametrize(
    ("policy", "note"),
    [
        ("dense", "The policy prunes no weight in the forward: the weights are dense."),
        ("gradients", "the weights are dense."),
        ("full", "the weights are dense. It prunes activations, which no checkpoint holds"),
    ],
)
def test_other_recipes_leave_dense_weights_and_it_says_so(
    policy: str, note: str, explained: Explained, tmp_path: Path
) -> None:
    model = Net()
    explained(model, X, policy)
    made = export(model, tmp_path / "net.safetensors")
    assert note in str(made)
    assert "all dense" in str(made)
    assert note in json.loads(made.listing.read_text())["note"]
    loaded = safetensors.load_file(made.path)
    assert all(torch.equal(loaded[k], v) for k, v in model.state_dict().items())


# What cannot be exported


def test_a_random_mask_is_refused(explained: Explained, tmp_path: Path) -> None:
    model = Net()
    explained(model, X, Policy(rules=[Rule(role="fprop", prune="weight", format="2:4",
                                           method="mvue")]))  # fmt: skip
    with pytest.raises(ExportError, match=r"weight of up cannot .*: its mask is random"):
        export(model, tmp_path / "net.safetensors")


def test_a_model_that_was_never_compiled(tmp_path: Path) -> None:
    model = Net()
    with pytest.raises(ExportError, match=r"no mask was ever taken of this Net: it is not compil"):
        export(model, tmp_path / "net.safetensors")
    model.compile()  # by something else
    with pytest.raises(ExportError, match="no mask was ever taken"):
        export(model, tmp_path / "net.safetensors")
    nmcompile.compile(model, "weights")
    with pytest.raises(ExportError, match="is compiled, and has not run in this process"):
        export(model, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "path", "error", "words"),
    [
        (3, "a.safetensors", ArgumentError, "a model to export is a module, not 3"),
        (Net(), 3, ArgumentError, "the path of a checkpoint is text, not 3"),
        (Net(), "a.pt", ExportError, "a file whose name ends in .safetensors"),
        (Net(), "missing/a.safetensors", ExportError, "there is no folder .*missing: make it"),
    ],
)
def test_what_is_wrong_with_the_arguments(
    model: Any, path: Any, error: type[Exception], words: str, tmp_path: Path
) -> None:
    where = tmp_path / path if isinstance(path, str) else path
    with pytest.raises(error, match=words):
        export(model, where)


def test_a_file_is_replaced_on_demand_alone(explained: Explained, tmp_path: Path) -> None:
    model, path = Net(), tmp_path / "net.safetensors"
    explained(model, X)
    path.write_text("of value")
    with pytest.raises(ExportError, match="is there already: write overwrite=True"):
        export(model, path)
    assert path.read_text() == "of value"
    export(model, path, overwrite=True)
    assert safetensors.load_file(path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_half_written(
    error: BaseException, explained: Explained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = Net(), tmp_path / "net.safetensors"
    explained(model, X)
    path.write_text("of value")

    def fails(tensors: Any, file: Any, metadata: Any) -> None:
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(safetensors, "save_file", fails)
    with pytest.raises((ExportError, KeyboardInterrupt)) as caught:
        export(model, path, overwrite=True)
    if isinstance(error, OSError):
        assert "cannot be written: No space left on device" in str(caught.value)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(path.name, "of value")]


def test_what_was_written_is_read_back_and_checked(
    explained: Explained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Net()
    explained(model, X)
    monkeypatch.setattr(
        "nmcompile.checkpoints.export._keep", lambda value, *rest: torch.ones_like(value).bool()
    )
    with pytest.raises(ExportError, match=r"up\.weight has a block of 4 with 4 non-zeros along"):
        export(model, tmp_path / "net.safetensors")
    assert os.listdir(tmp_path) == []


def test_a_state_that_safetensors_cannot_hold(explained: Explained, tmp_path: Path) -> None:
    class Extra(Net):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None: ...

    model = Extra()
    explained(model, X)
    with pytest.raises(ExportError, match=r"_extra_state in the state_dict.* is no tensor but"):
        export(model, tmp_path / "net.safetensors")


def test_sharded_weights_are_refused(
    explained: Explained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Net()
    explained(model, X)
    monkeypatch.setattr("nmcompile.checkpoints.export.is_sharded", lambda value: True)
    with pytest.raises(ExportError, match=r"up\.weight is sharded over ranks: gather"):
        export(model, tmp_path / "net.safetensors")


def test_without_safetensors(
    explained: Explained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ExportError, match=r"pip install \"nmcompile\[export\]\""):
        export(Net(), tmp_path / "net.safetensors")


# After training


def train(model: nn.Module, run: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        run(X).square().mean().backward()
        optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["compile", "each", "schedule", "wrapper"])
def test_the_plain_model_computes_what_the_pruned_one_does(how: str, tmp_path: Path) -> None:
    model = nn.Sequential(Net(), nn.Linear(8, 16), Net())
    run: Any = model
    if how == "schedule":
        schedule = Schedule(model, {0: "dense", 2: "weights"})
        schedule.warm_up()
    elif how == "wrapper":
        run = torch.compile(model, backend="nm_sparse", options={"policy": "weights"})
    else:
        nmcompile.compile(model, "weights", each="re:[02]" if how == "each" else None)
    other = nmcompile.compile(nn.Linear(16, 4), "weights")  # is no part of it
    other(X)
    train(model, run)
    if how == "schedule":
        schedule.step(at=2)
    model.eval()
    with torch.no_grad():
        expected = run(X)
        dense = nn.Sequential(*model)(X) if how == "compile" else None
    made = export(run, tmp_path / "net.safetensors")
    names = {f"{i}.{name}.weight" for i in (0, 2) for name in ("up", "short")}
    names |= set() if how == "each" else {"1.weight"}
    assert {layer.name for layer in made.layers} == names
    plain = nn.Sequential(Net(), nn.Linear(8, 16), Net()).eval()
    plain.load_state_dict(safetensors.load_file(made.path))
    with torch.no_grad():
        torch.testing.assert_close(plain(X), expected)
    assert dense is None or not torch.allclose(dense, expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("each", [None, "re:[02]"])
def test_a_part_that_was_compiled_by_itself_has_the_names_of_the_whole(
    each: str | None, tmp_path: Path
) -> None:
    class Whole(nn.Module):
        """As a LightningModule has its network."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(Net(), nn.Linear(8, 16), Net())
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.net(x))

    whole = Whole().eval()
    nmcompile.compile(whole.net, "weights", each=each)
    with torch.no_grad():
        expected = whole(X)
    made = export(whole, tmp_path / "net.safetensors")
    assert {"net.0.up.weight", "net.2.short.weight"} <= {layer.name for layer in made.layers}
    plain = Whole().eval()
    plain.load_state_dict(safetensors.load_file(made.path))
    with torch.no_grad():
        torch.testing.assert_close(plain(X), expected)


@pytest.mark.slow
def test_a_schedule_that_ends_dense_exports_dense_weights(tmp_path: Path) -> None:
    schedule = Schedule(Net(), {0: "weights", 3: "dense"})
    with torch.no_grad():
        schedule.warm_up(X)
    assert export(schedule.model, tmp_path / "a.safetensors").layers
    schedule.step(at=3)
    made = export(schedule.model, tmp_path / "b.safetensors")
    assert "the weights are dense" in made.note
