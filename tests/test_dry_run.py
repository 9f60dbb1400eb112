"""``nmcompile.explain``: what it leaves untouched, what it takes and what it raises."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad

import nmcompile
from nmcompile import ArgumentError, OptionError, Policy, PolicyError, Report, Rule
from nmcompile.compressed.layouts import Layout
from nmcompile.errors import NMWarning
from nmcompile.execution.targets import named
from nmcompile.reason import Code
from tests.report.net import Net


def test_explain_changes_nothing() -> None:
    model, x = Net(), torch.randn(4, 4, 6, 6)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.random.get_rng_state()
    nmcompile.explain(model, x)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_explain_is_not_swayed_by_earlier_calls() -> None:
    first = nmcompile.explain(nn.Linear(8, 8), torch.randn(4, 8))
    for tokens in range(5, 16):  # more than Dynamo's limit of recompilations
        again = nmcompile.explain(nn.Linear(8, 8), torch.randn(tokens, 8))
    assert [s.sizes[1] for s in (first.sites[0], again.sites[0])] == ["4", "15"]


def test_explain_takes_a_compiled_model_and_keyword_inputs() -> None:
    compiled = torch.compile(nn.Linear(8, 8), backend="nm_sparse")
    assert len(nmcompile.explain(compiled, input=torch.randn(4, 8)).sites) == 2


def test_explain_raises_policy_errors_as_they_are() -> None:
    rule = Rule(
        prune="activation", role="fprop", format="1:4", execution="sparse", fallback="error"
    )
    with pytest.raises(PolicyError, match="asks for execution"):
        nmcompile.explain(nn.Linear(8, 8), torch.randn(4, 8), policy=Policy(rules=[rule]))


def test_explain_needs_no_memory_for_the_model() -> None:
    with torch.device("meta"):
        model, x = nn.Linear(8, 8), torch.randn(4, 8)
    report = nmcompile.explain(model, x)
    assert {s.device for s in report.sites} == {"cpu"}  # as whose fake tensors it is looked at
    assert report.totals.pruned_share == 1.0
    assert model.weight.is_meta


def test_a_model_on_meta_is_planned_as_a_real_one() -> None:
    class Classifier(nn.Module):  # PyTorch has no gradient of this loss on meta
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = nn.Linear(8, 16), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            q, k = self.up(x).chunk(2, -1)
            x = nn.functional.scaled_dot_product_attention(q, k, x)  # falls apart on meta
            return nn.functional.cross_entropy(self.head(x).flatten(0, 2), y)

    model, x, y = Classifier(), torch.randn(2, 2, 3, 8), torch.zeros(12, dtype=torch.long)
    real = nmcompile.explain(model, x, y)
    meta = nmcompile.explain(model.to("meta"), x.to("meta"), y.to("meta"))
    assert meta.sites == real.sites
    assert meta.totals == real.totals
    assert {str(s.role) for s in meta.sites} == {"fprop", "dgrad", "wgrad"}


# What no graph holds


class Mixed(nn.Module):
    """Two layers of which one is not traced."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.unseen = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.seen(x)
        torch._dynamo.graph_break()
        return self.apart(x)

    @torch.compiler.disable
    def apart(self, x: torch.Tensor) -> torch.Tensor:
        return self.unseen(x)


def test_what_runs_eagerly_is_counted_and_named() -> None:
    report = nmcompile.explain(Mixed(), torch.randn(4, 8, requires_grad=True))
    (row,) = report.eager
    assert (row.module, row.module_class, row.target) == ("unseen", "Linear", "aten.addmm")
    assert row.flops == sum(s.flops for s in report.sites) == report.totals.eager_flops
    assert report.totals.eager_share == 0.5
    assert report.uncompiled == ("unseen",)
    assert "50.0% of the step's multiplying is in no graph" in str(report)
    assert [note.code for note in report.notes] == [Code.SOME_EAGER]
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_paths_are_those_inside_of_a_data_parallel_wrapper() -> None:
    report = nmcompile.explain(nn.DataParallel(Mixed()), torch.randn(4, 8))
    assert {s.module for s in report.sites} == {"seen"}
    assert [row.module for row in report.eager] == ["unseen"] == list(report.uncompiled)


def test_a_model_that_cannot_be_traced_is_all_eager() -> None:
    report = nmcompile.explain(nn.LSTM(8, 8), torch.randn(2, 3, 8))
    assert [note.code for note in report.notes] == [Code.NO_GRAPH]
    assert report.totals.eager_share == 1.0


def test_a_step_that_runs_its_own_backward_is_counted_once() -> None:
    """Twice over one graph, even: what is interpreted keeps what it reads."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))

    def step(x: torch.Tensor) -> None:
        loss = model(x).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()

    report = nmcompile.explain(step, torch.randn(8, 16))
    assert [str(s.role) for s in report.sites] == ["fprop", "fprop", "dgrad", "wgrad", "wgrad"]
    assert report.eager == ()
    assert report.totals.eager_share == 0


def test_a_traced_model_has_nothing_eager() -> None:
    report = nmcompile.explain(Net(), torch.randn(4, 4, 6, 6))
    assert (report.eager, report.notes, report.uncompiled) == ((), (), ())


# Block by block


def blocks() -> nn.Module:
    layers = (nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))
    return nn.Sequential(nn.Linear(8, 8), nn.Sequential(*layers))


def test_equal_blocks_are_planned_once_and_count_each() -> None:
    model, x = blocks(), torch.randn(4, 8, requires_grad=True)
    whole, once = nmcompile.explain(model, x), nmcompile.explain(model, x, each="1.*")
    assert [g.calls for g in whole.graphs] == [1]
    assert [(g.calls, g.region) for g in once.graphs] == [(3, ("1.0", "1.1", "1.2"))]
    assert {s.module for s in once.sites} == {"1.{0..2}.0"}
    assert (once.totals.sites, whole.totals.sites) == (9, 12)
    assert [(r.module, r.calls) for r in once.eager] == [("0", 1)]
    everything = once.totals.flops + once.totals.eager_flops
    assert everything == whole.totals.flops
    assert "graph 0 (training), 3 times" in str(once)
    assert once.uncompiled == ("0",)
    assert all(m._compiled_call_impl is None for m in model.modules())


def test_blocks_that_read_their_number_are_planned_once() -> None:
    class Numbered(nn.Linear):
        def __init__(self, number: int) -> None:
            super().__init__(8, 8)
            self.number = number

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if self.number >= 0 else x

    model, x = nn.Sequential(*map(Numbered, range(3))), torch.randn(4, 8, requires_grad=True)
    (graph,) = nmcompile.explain(model, x, each="*").graphs
    assert (graph.calls, graph.region) == (3, ("0", "1", "2"))


def test_blocks_that_a_rule_tells_apart_are_planned_apart() -> None:
    policy = Policy(rules=[Rule(module="1.1.*", dense=True)], extends="full")
    report = nmcompile.explain(blocks(), torch.randn(4, 8), policy=policy, each="1.*")
    assert sorted(g.region for g in report.graphs) == [("1.0", "1.2"), ("1.1",)]
    assert {s.module for s in report.sites if s.pruned} == {"1.{0,2}.0"}


def test_each_is_of_a_module() -> None:
    with pytest.raises(OptionError, match="names modules"):
        nmcompile.explain(lambda x: x, torch.randn(2), each="layers.*")


# For a GPU that is not there


class Layer(nn.Module):
    """A layer like Llama 3 8B's."""

    def __init__(self, width: int = 4096, hidden: int = 14336, narrow: int = 1024) -> None:
        super().__init__()

        def linear(inputs: int, outputs: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(outputs, inputs, dtype=torch.bfloat16))

        self.q, self.k, self.v = (linear(width, n) for n in (width, narrow, narrow))
        self.o, self.gate = linear(width, width), linear(width, hidden)
        self.up, self.down = linear(width, hidden), linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = nn.functional
        batch, tokens, width = x.shape
        h = f.rms_norm(x, (width,))
        q, k, v = (f.linear(h, w).view(batch, tokens, -1, 128) for w in (self.q, self.k, self.v))
        heads = [t.transpose(1, 2) for t in (q, k, v)]
        a = f.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        x = x + f.linear(a.transpose(1, 2).reshape(x.shape), self.o)
        h = f.rms_norm(x, (width,))
        return x + f.linear(f.silu(f.linear(h, self.gate)) * f.linear(h, self.up), self.down)


def stack(policy: str = "full", target: str = "h100", layers: int = 2) -> Report:
    """Two layers, 16,384 tokens, on tensors that take no memory."""
    with FakeTensorMode():
        model = nn.Sequential(*(Layer() for _ in range(layers)))
        x = torch.empty(2, 8192, 4096, dtype=torch.bfloat16, requires_grad=True)
        return nmcompile.explain(model, x, policy=policy, target=target)


@pytest.fixture(scope="module")
def llama() -> Report:
    start = time.perf_counter()
    report = stack()
    assert time.perf_counter() - start < 60  # 7 s on an idle core of today
    return report


@pytest.mark.slow
class TestOfAnAbsentGpu:
    def test_every_product_is_decided_as_on_the_gpu(self, llama: Report) -> None:
        assert llama.target == named("h100")
        assert {s.execution for s in llama.sites} == {"sparse"}
        assert {s.layout for s in llama.sites} == {Layout.CUSPARSELT_SM90}
        assert all(s.has(Code.GAIN) for s in llama.sites)
        assert {s.device for s in llama.sites} == {"cpu"}  # where it was traced

    def test_products_of_one_operand_are_one_unit(self, llama: Report) -> None:
        (graph,) = llama.graphs
        roles = [{str(graph.sites[s].role) for s in row.sites} for row in graph.units]
        sizes = sorted(len(row.sites) for row in graph.units)
        # q, k, v; o; gate, up; down. And dgrad with wgrad, for each of the seven.
        assert sizes == sorted(2 * ([3, 1, 2, 1] + 7 * [2]))
        assert roles.count({"dgrad", "wgrad"}) == 14
        assert {row.how for row in graph.units} == {"predicted"}

    def test_the_totals_are_those_of_the_units(self, llama: Report) -> None:
        (graph,), totals = llama.graphs, llama.totals
        assert totals.dense_us == pytest.approx(sum(row.dense_us for row in graph.units))
        assert totals.planned_us == pytest.approx(sum(row.sparse_us for row in graph.units))
        assert totals.untimed_sites == 0
        assert 1.1 < totals.dense_us / totals.planned_us < 1.5
        for row in graph.units:
            terms = {name: us for name, us in row.terms_us.items() if name != "dense"}
            assert sum(terms.values()) == pytest.approx(row.sparse_us)
        assert totals.saved_bytes == sum(s.bytes for s in llama.saved)

    def test_the_kernels_are_those_of_the_units(self, llama: Report) -> None:
        (graph,) = llama.graphs
        assert graph.kernel_specs is not None
        operands = [(s.method, o.orientations) for s in graph.kernel_specs for o in s.operands]
        assert len(operands) == len(graph.units)  # a kernel may have several, with their own units
        assert operands.count(("mvue", "both")) == 14
        assert operands.count(("mse", "rows")) == 8
        assert {s.layout for s in graph.kernel_specs} == {Layout.CUSPARSELT_SM90}

    def test_the_report_says_what_is_predicted(self, llama: Report) -> None:
        text = str(llama)
        assert "predicted on h100: products of a step " in text
        assert "3 of 3 sparse, predicted: dense 1" in text
        assert "kernel that would be generated: " in text
        assert Report.model_validate_json(llama.model_dump_json()) == llama


@pytest.mark.slow
def test_an_exact_policy_saves_less() -> None:
    saved = [stack(policy, layers=1).totals.saved_bytes for policy in ("dense", "full-exact")]
    assert saved[0]
    assert saved[1] / saved[0] < 0.8


def small(target: str, dtype: torch.dtype = torch.bfloat16, **keys: object) -> Report:
    with torch.device("meta"):
        model, x = nn.Linear(4096, 4096, dtype=dtype), torch.randn(32768, 4096, dtype=dtype)
    return nmcompile.explain(model, x, target=target, **keys)


def test_targets_have_their_own_layouts_and_times() -> None:
    h100, a100 = small("h100"), small("a100")
    assert {s.layout for s in h100.sites if s.execution == "sparse"} == {Layout.CUSPARSELT_SM90}
    assert {s.layout for s in a100.sites if s.execution == "sparse"} == {Layout.CUSPARSELT_SM80}
    assert a100.totals.dense_us > 2 * h100.totals.dense_us
    assert nmcompile.explain(nn.Linear(8, 8), torch.randn(4, 8)).totals.dense_us is None


@pytest.mark.parametrize("target", ["l40s", "rtx4090", "b200"])
def test_gpus_whose_layout_only_the_library_knows(target: str) -> None:
    report = small(target, policy=Policy(extends="full", margin=0.5))
    assert {s.layout for s in report.sites} == {Layout.CUSPARSELT}
    graph = report.graphs[0]
    assert all({"prune", "compress"} <= set(row.terms_us) for row in graph.units)
    assert "nm.pack" in graph.after
    names = ["prune_runs_mse_2_4", "prune_across_mvue_2_4"]
    assert [s.name for s in graph.kernel_specs or ()] == names


def test_float32_is_dense_on_a_gpu_and_says_what_autocast_would_give() -> None:
    with pytest.warns(NMWarning, match="nothing is pruned: none of 2 products"):
        report = small("h100", torch.float32)
    assert {s.execution for s in report.sites} == {"dense"}
    assert "under bfloat16 autocast predicted: dense" in report.sites[0].reason
    assert report.totals.dense_us is None


def test_an_unknown_target_has_the_nearest_name() -> None:
    with pytest.raises(OptionError, match="'h1000' is no target: did you mean 'h100'"):
        small("h1000")


def test_an_input_that_is_called_target_is_not_taken_for_one() -> None:
    loss, x = nn.MSELoss(), torch.randn(4, 8)
    with pytest.raises(OptionError, match=r"not a Tensor: give .* this input by position"):
        nmcompile.explain(loss, x, target=x)
    with pytest.raises(OptionError, match=r"cuda_graphs is True or False, not .* by position"):
        nmcompile.explain(loss, x, cuda_graphs=x)


def test_in_cuda_graphs_the_host_does_not_count() -> None:
    """A layer whose products take the device less time than their calls the host."""
    h100 = named("h100")
    assert h100.figures is not None
    setup = h100.figures.setup.model_copy(update={"value": 640e-6})
    slow = h100.model_copy(update={"figures": h100.figures.model_copy(update={"setup": setup})})

    def planned(cuda_graphs: bool) -> Report:
        with FakeTensorMode():
            model = nn.Linear(4096, 4096, bias=False, dtype=torch.bfloat16)
            x = torch.empty(4096, 4096, dtype=torch.bfloat16, requires_grad=True)
            return nmcompile.explain(model, x, target=slow, cuda_graphs=cuda_graphs)

    with pytest.warns(NMWarning, match=r"nothing is pruned: .* with CUDA graphs"):
        without = planned(False)
    within = planned(True)
    assert {s.execution for s in without.sites} == {"dense"}
    assert all("with CUDA graphs (triton.cudagraphs)" in s.reason for s in without.sites)
    assert "host" in without.graphs[0].units[0].terms_us
    assert {s.execution for s in within.sites} == {"sparse"}
    assert not any("host" in row.terms_us for row in within.graphs[0].units)
    assert within.cuda_graphs
    assert "predicted on h100 in CUDA graphs: products of a step " in str(within)


def test_a_target_that_cannot_is_an_error_with_site_and_reason() -> None:
    rule = Rule(prune="activation", role="fprop", format="1:4")
    policy = Policy(rules=[rule], execution="sparse", fallback="error")
    with pytest.raises(PolicyError, match=r"addmm.*sparse tensor cores take 2:4"):
        small("h100", policy=policy)


def test_saved_bytes_of_a_model_on_the_meta_device_are_those_on_the_cpu() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)), torch.randn(4, 8)
    meta = nmcompile.explain(model.to("meta"), x.to("meta").requires_grad_())
    real = nmcompile.explain(model.to_empty(device="cpu"), x.requires_grad_())
    assert meta.totals.saved_bytes == real.totals.saved_bytes
    assert real.totals.saved_bytes


def test_a_graph_that_takes_derivatives_itself_says_so_in_every_row() -> None:
    model = nn.Linear(8, 4)

    def step(params: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, torch.Tensor]:
        return grad(lambda p: functional_call(model, p, (x,)).square().mean())(params)

    with pytest.warns(NMWarning, match="takes derivatives itself"):
        report = nmcompile.explain(step, dict(model.named_parameters()), torch.randn(8, 8))
    assert report.sites
    assert all(s.pruned is None and s.has(Code.TAKES_DERIVATIVES) for s in report.sites)


@pytest.mark.parametrize("model", [None, "model", 3])
def test_what_cannot_be_called(model: object) -> None:
    with pytest.raises(ArgumentError, match="explain takes a module or a function, not "):
        nmcompile.explain(model)  # type: ignore[arg-type]
