"""``nmcompile.compile``: in place, whole or block by block, with rules on full paths."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import nmcompile
from nmcompile import OptionError, Policy, PolicyError, Rule
from nmcompile.passes import pipeline
from nmcompile.passes.run import Pass

IDENTITY_DENSITY = {"2:4": 0.5, "1:4": 0.25}


class Block(nn.Module):
    """Keeps what its identity layer gives: the mask of its input is seen there."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16, bias=False)
        nn.init.eye_(self.fc.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.fc(x)
        return x + 0 * y, y


class Net(nn.Module):
    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, list[float]]:
        densities = []
        for layer in self.layers:
            x, y = layer(x)
            densities.append((y != 0).float().mean().item())
        return self.head(x), densities


def densities(model: Net) -> list[float]:
    return model(torch.randn(8, 16))[1]


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def count_from_zero() -> None:
    counters.clear()


def forward(module: str, form: str) -> Rule:
    return Rule(module=module, role="fprop", prune="activation", format=form)


def test_in_place_with_plain_names() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    names = list(model.state_dict())
    assert nmcompile.compile(model, "full") is model
    model(torch.randn(4, 16)).sum().backward()
    assert list(model.state_dict()) == names
    assert nmcompile.last_report().totals.pruned_sites == 5
    copy.deepcopy(model)  # as trainers do


def test_a_wrong_policy_is_an_error_before_the_first_step() -> None:
    with pytest.raises(PolicyError, match="did you mean 'full'"):
        nmcompile.compile(nn.Linear(4, 4), "ful")


def test_blocks_share_code_and_see_full_paths() -> None:
    model = nmcompile.compile(Net(), Policy(rules=[forward("layers.*.fc", "1:4")]), each="layers.*")
    with torch.no_grad():
        assert densities(model) == [0.25] * 4
    assert graphs() == 1
    assert {s.module for s in nmcompile.last_report().sites} == {"layers.{0..3}.fc"}


def test_a_rule_on_an_index_gets_code_of_its_own() -> None:
    rules = [forward("layers.[03].*", "1:4"), forward("*", "2:4")]
    model = nmcompile.compile(Net(), Policy(rules=rules), each="re:layers\\.\\d+")
    with torch.no_grad():
        assert densities(model) == [0.25, 0.5, 0.5, 0.25]
    assert graphs() == 2


def test_only_outermost_matches_are_compiled() -> None:
    model = nmcompile.compile(Net(), each="layers.*")
    compiled = {name for name, m in model.named_modules() if m._compiled_call_impl is not None}
    assert compiled == {f"layers.{i}" for i in range(4)}


@pytest.mark.parametrize(
    ("each", "message"), [("layer.*", "matches no module"), ("re:(", "invalid regular expression")]
)
def test_each_must_match(each: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        nmcompile.compile(Net(), each=each)


def error_of(call: Any) -> str:
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        call()
    assert isinstance(caught.value.inner_exception, PolicyError)
    return str(caught.value.inner_exception)


def test_a_rule_on_an_index_is_refused_where_blocks_do_not_know_theirs() -> None:
    model = Net()
    policy = Policy(rules=[forward("layers.0.fc", "1:4")], extends="dense")
    for layer in model.layers:
        layer.compile(backend="nm_sparse", options={"policy": policy})
    message = error_of(lambda: densities(model))
    assert "rule 1: module = 'layers.0.fc' names a layer by its index" in message
    assert "compiled here is Block" in message


def test_a_region_whose_blocks_differ_is_refused() -> None:
    policy = Policy(rules=[forward("layers.1.*", "1:4"), forward("*", "2:4")])
    model = Net(2)
    for layer in model.layers:
        options = {"policy": policy, "nm.region": ("layers.0", "layers.1")}
        layer.compile(backend="nm_sparse", options=options)
    message = error_of(lambda: densities(model))
    assert "rule 2 decides layers.0.fc but" in message
    assert "rule 1 decides layers.1.fc" in message


@pytest.mark.parametrize("in_place", [False, True])
def test_blocks_that_a_graph_break_separates_see_full_paths(in_place: bool) -> None:
    model = Net()  # .item() breaks the graph inside of a loop: Dynamo compiles the blocks alone
    policy = Policy(rules=[forward("layers.*.fc", "1:4"), Rule(module="fc", dense=True)])
    run = nmcompile.compile(model, policy) if in_place else whole(model, policy)
    with torch.no_grad():
        assert densities(run) == [0.25] * 4
    assert {s.module for s in nmcompile.last_report().sites} == {"layers.{0..3}.fc"}


def test_explain_sees_full_paths_of_separated_blocks_too() -> None:
    report = nmcompile.explain(Net(), torch.randn(8, 16))
    assert {s.module for s in report.sites} == {"layers.{0..3}.fc"}


def test_a_rule_that_separated_blocks_cannot_honour_is_refused() -> None:
    rules = [forward("layers.3.fc", "1:4"), forward("layers.0.fc", "2:4")]
    message = error_of(lambda: densities(whole(Net(), Policy(rules=rules))))
    assert "share one compiled graph" in message


def whole(model: nn.Module, policy: Policy) -> Any:
    return torch.compile(model, backend="nm_sparse", options={"policy": policy})


def test_a_rule_for_a_deeper_model_just_matches_nothing() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(16, 8)))
    policy = Policy(rules=[Rule(module="7.*", dense=True)], extends="full")
    whole(model, policy)(torch.randn(4, 16))
    assert nmcompile.last_report().unused_rules == ("<python>, rule 1",)


@pytest.mark.parametrize("each", [None, "layers.*"])
def test_pytorchs_own_classes_are_compiled_too(each: str | None) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    nmcompile.compile(model, each=each)
    model(torch.randn(2, 4, 16)).sum().backward()
    report = nmcompile.last_report()
    assert report.totals.pruned_sites > 0
    prefix = "layers.{0..1}" if each else "layers.1"
    assert f"{prefix}.linear1" in {s.module for s in report.sites}


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            {"rule": [{"module": "heads", "prune": "activation", "format": "2:4"}]},
            r"rule 1: module = 'heads' matches no path \(did you mean 'head'\?",
        ),
        (
            {"rule": [{"class": "Liner", "prune": "activation", "format": "2:4"}]},
            r"rule 1: class = 'Liner' matches no class \(did you mean 'Linear'\?",
        ),
        (
            {"rule": [{"prune": "activation", "format": "2:32"}]},
            "nothing is pruned of 2 products: 1 x the reduction dimension has",
        ),
    ],
)
def test_a_policy_that_prunes_nothing_warns_once(policy: Any, message: str) -> None:
    model = nn.ModuleDict({"head": nn.Linear(16, 8), "last": nn.Linear(8, 8)})

    def forward(x: Tensor) -> Tensor:
        return model["last"](model["head"](x))

    compiled = torch.compile(forward, backend="nm_sparse", options={"policy": policy})
    with torch.no_grad():
        with pytest.warns(nmcompile.NMWarning, match=message) as caught:
            compiled(torch.randn(4, 16))
        compiled(torch.randn(6, 16))  # compiles again, for any size: no second warning
    assert len([w for w in caught if w.category is nmcompile.NMWarning]) == 1
    assert graphs() == 2


def test_a_model_without_products_warns() -> None:
    compiled = torch.compile(nn.LayerNorm(16), backend="nm_sparse")
    with pytest.warns(nmcompile.NMWarning, match="the model has no matrix product"):
        compiled(torch.randn(4, 16))


class Broken(nn.Module):
    """The first of its two graphs has no product."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        torch._dynamo.graph_break()
        return self.fc(x)


def test_no_warning_where_there_is_nothing_to_say() -> None:
    compiled = torch.compile(Broken(), backend="nm_sparse")  # NMWarning is an error in tests
    compiled(torch.randn(4, 16)).sum().backward()
    for policy in ("gradients", "dense"):
        with torch.no_grad():  # no gradient to prune, and none asked for
            whole(Broken(), policy)(torch.randn(4, 16))


@pytest.mark.parametrize("passes", ["JOINT", "POST_GRAD"])
def test_a_failing_pass_is_named_instead_of_running_eagerly(
    monkeypatch: pytest.MonkeyPatch, passes: str
) -> None:
    def broken(*_: Any) -> None:
        # Dynamo takes this one for something that it cannot trace.
        raise torch._subclasses.fake_tensor.DataDependentOutputException("aten.item")

    monkeypatch.setattr(pipeline, passes, (Pass(broken),))
    compiled = torch.compile(nn.Linear(16, 16), backend="nm_sparse")
    with torch.no_grad(), pytest.raises(Exception, match="failed on this graph: DataDep") as caught:
        compiled(torch.randn(4, 16))
    assert "pass broken" in str(caught.value)


def test_a_function_that_closes_over_a_name_without_a_value() -> None:
    model = Broken()

    def step(x: Tensor) -> Tensor:
        return model(x) if x.dim() == 2 else later(x)

    with torch.no_grad():
        torch.compile(step, backend="nm_sparse")(torch.randn(4, 16))
    later = nn.Identity()
    assert [s.module for s in nmcompile.last_report().sites] == ["fc"]
