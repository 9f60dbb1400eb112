"""The runner: contracts, what a pass may leave behind, and the numbered dumps."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile import NMError, PolicyError
from nmcompile.graph.dump import readable
from nmcompile.passes.pipeline import JOINT, POST_GRAD
from nmcompile.passes.run import Pass, run

aten = torch.ops.aten


class State:
    """What the runner knows of a state: its graph."""

    def __init__(self) -> None:
        def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.relu(x @ y).t()

        gm = make_fx(f, tracing_mode="fake")(torch.randn(4, 6), torch.randn(6, 8))
        self.graph = gm.graph

    def node(self, target: Any) -> fx.Node:
        (found,) = self.graph.find_nodes(op="call_function", target=target)
        return found


def passing(state: State) -> None:
    """A pass that does nothing."""


def has_relu(state: State) -> Iterator[str]:
    """A fact."""
    if not state.graph.find_nodes(op="call_function", target=aten.relu.default):
        yield "there is no relu"


def small(state: State) -> Iterator[str]:
    """Another one."""
    if len(state.graph.nodes) > 6:
        yield f"there are {len(state.graph.nodes)} nodes"


def drop_relu(state: State) -> None:
    relu = state.node(aten.relu.default)
    relu.replace_all_uses_with(relu.all_input_nodes[0])
    state.graph.erase_node(relu)


# -- contracts -----------------------------------------------------------------------------------


def test_a_pass_that_lacks_what_it_needs_does_not_run() -> None:
    ran: list[str] = []

    def second(state: State) -> None:
        ran.append("second")

    needy = Pass(second, needs=[has_relu, small])
    with pytest.raises(NMError, match=r"^pass second needs small: no earlier pass leaves it$"):
        run([Pass(passing, leaves=[has_relu]), needy], State(), "graph")
    assert ran == []
    run([Pass(passing, leaves=[has_relu]), Pass(passing, leaves=[small]), needy], State(), "graph")
    assert ran == ["second"]


def test_needs_are_checked_without_the_debug_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NMCOMPILE_CHECK_PASSES")
    with pytest.raises(NMError, match="pass passing needs has_relu"):
        run([Pass(passing, needs=[has_relu])], State(), "graph")


def test_a_broken_fact_names_the_pass_that_broke_it() -> None:
    steps = [Pass(passing, leaves=[has_relu]), Pass(passing), Pass(drop_relu), Pass(passing)]
    message = "^pass drop_relu left a graph in which has_relu: there is no relu$"
    with pytest.raises(NMError, match=message):
        run(steps, State(), "graph")


def test_a_pass_must_leave_what_it_promises() -> None:
    with pytest.raises(NMError, match="pass drop_relu left a graph in which has_relu: there is no"):
        run([Pass(drop_relu, leaves=[has_relu])], State(), "graph")


def test_a_fact_that_fails_itself_is_named_with_the_pass() -> None:
    def broken(state: State) -> Iterator[str]:
        raise KeyError("oh")

    with pytest.raises(NMError, match="pass passing failed on this graph: KeyError: 'oh'"):
        run([Pass(passing, leaves=[broken])], State(), "graph")


# -- errors --------------------------------------------------------------------------------------


def test_a_pass_that_fails_is_named() -> None:
    def crooked(state: State) -> None:
        raise ValueError("no such thing")

    message = "pass crooked failed on this graph: ValueError: no such thing.*mistake of nmcompile"
    with pytest.raises(NMError, match=message) as caught:
        run([Pass(passing), Pass(crooked)], State(), "graph")
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_of_the_policy_stays_what_it_is() -> None:
    def strict(state: State) -> None:
        raise PolicyError("rule 1 asks for too much")

    with pytest.raises(PolicyError, match=r"^rule 1 asks for too much$"):
        run([Pass(strict)], State(), "graph")


# -- graphs that no pass may leave ---------------------------------------------------------------


def reads_what_comes_later(state: State) -> None:
    mm, relu = state.node(aten.mm.default), state.node(aten.relu.default)
    mm.update_arg(0, relu)


def reads_what_is_gone(state: State) -> None:
    relu = state.node(aten.relu.default)
    new = fx.Graph().call_function(aten.relu.default, ())
    relu.replace_input_with(relu.all_input_nodes[0], new)


@pytest.mark.parametrize("wrong", [reads_what_comes_later, reads_what_is_gone])
def test_an_unsound_graph_is_named(wrong: Callable[[State], None]) -> None:
    with pytest.raises(NMError, match=f"pass {wrong.__name__} failed on this graph: RuntimeError"):
        run([Pass(wrong)], State(), "graph")


def other_shape(state: State) -> None:
    """relu of the transposed left operand, and the old value's metadata."""
    relu = state.node(aten.relu.default)
    x = next(iter(state.graph.nodes))
    relu.update_arg(0, x)


def other_strides(state: State) -> None:
    relu = state.node(aten.relu.default)
    with state.graph.inserting_before(relu):
        copy = state.graph.call_function(aten.clone.default, relu.args)
    copy.meta["val"] = relu.args[0].meta["val"].t().contiguous().t()  # type: ignore[union-attr]
    relu.update_arg(0, copy)


def other_dtype(state: State) -> None:
    relu = state.node(aten.relu.default)
    with state.graph.inserting_before(relu):
        cast = state.graph.call_function(aten.to.dtype, (relu.args[0], torch.float64))
    cast.meta["val"] = relu.args[0].meta["val"].to(torch.float64)  # type: ignore[union-attr]
    relu.update_arg(0, cast)


def other_device(state: State) -> None:
    state.node(aten.relu.default).meta["val"] = torch.empty(4, 8, device="meta")


def other_number_of_results(state: State) -> None:
    relu = state.node(aten.relu.default)
    relu.meta["val"] = [relu.meta["val"]]


def nothing_said(state: State) -> None:
    """A new node without a value, and a reader of it."""
    relu = state.node(aten.relu.default)
    with state.graph.inserting_before(relu):
        copy = state.graph.call_function(aten.clone.default, relu.args)
    relu.update_arg(0, copy)


def cannot_be_computed(state: State) -> None:
    mm = state.node(aten.mm.default)
    mm.args = mm.args[::-1]


def stale_reader(state: State) -> None:
    """An honest change of a node whose reader is no longer what it says."""
    mm, (x, y) = state.node(aten.mm.default), state.node(aten.mm.default).args
    with state.graph.inserting_before(mm):
        x_t = state.graph.call_function(aten.t.default, (x,))
        y_t = state.graph.call_function(aten.t.default, (y,))
    values = [n.meta["val"] for n in (x, y)]  # type: ignore[union-attr]
    x_t.meta["val"], y_t.meta["val"] = [v.t() for v in values]
    mm.args = (y_t, x_t)
    mm.meta["val"] = values[1].t() @ values[0].t()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (other_shape, r"relu = aten.relu.default is \(\[4, 6\], .* says \(\[4, 8\]"),
        (other_strides, r"clone_default = .* is \(\[4, 8\], \[8, 1\].* says \(\[4, 8\], \[1, 4\]"),
        (other_dtype, r"relu = .* is .*torch.float64.* says .*torch.float32"),
        (other_device, r"relu = .* is .*type='cpu'.* says .*type='meta'"),
        (other_number_of_results, r"relu = .* says \[\("),
        (nothing_said, r"clone_default has no meta\['val'\]$"),
        (cannot_be_computed, r"mm = aten.mm.default cannot be computed: RuntimeError: "),
        (stale_reader, r"relu = .* is \(\[8, 4\], .* says \(\[4, 8\]"),
    ],
)
def test_a_dishonest_value_is_named(wrong: Callable[[State], None], text: str) -> None:
    with pytest.raises(NMError, match=f"pass {wrong.__name__} left a graph in which {text}"):
        run([Pass(wrong)], State(), "graph")


def test_what_was_wrong_before_is_not_blamed_on_a_pass() -> None:
    state = State()
    state.node(aten.relu.default).meta["val"] = torch.empty(1)
    run([Pass(passing)], state, "graph")


def test_what_real_tensors_said_stands_while_the_operands_look_the_same() -> None:
    """A convolution of one image gives other strides than a fake run says, in torch 2.13."""

    def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.conv2d(x.transpose(1, 2).unflatten(2, (3, 3)), w)

    state = State()
    state.graph = make_fx(f)(torch.randn(1, 9, 8), torch.randn(4, 8, 1, 1)).graph
    product = state.node(aten.convolution.default)
    (image, weight, *rest) = product.args
    said = product.meta["val"]

    def negate(state: State) -> None:
        with state.graph.inserting_before(product):
            negative = state.graph.call_function(aten.neg.default, (image,))
        negative.meta["val"] = image.meta["val"].clone()
        product.args = (negative, weight, *rest)

    run([Pass(negate)], state, "graph")
    assert product.meta["val"] is said
    real = torch.conv2d(
        torch.randn(1, 9, 8).transpose(1, 2).unflatten(2, (3, 3)), torch.randn(4, 8, 1, 1)
    )
    assert said.stride() == real.stride()


def test_without_the_setting_nothing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[str] = []

    def costly(state: State) -> Iterator[str]:
        evaluated.append("fact")
        yield "it never holds"

    def forbidden(*_: Any) -> Any:
        raise AssertionError("evaluated")

    state, runner = State(), sys.modules["nmcompile.passes.run"]
    monkeypatch.setenv("NMCOMPILE_CHECK_PASSES", "0")
    for name in ("Snapshot", "dishonest", "readable"):
        monkeypatch.setattr(runner, name, forbidden)
    monkeypatch.setattr(fx.Graph, "lint", forbidden)
    run([Pass(other_shape, leaves=[costly]), Pass(reads_what_comes_later)], state, "graph")
    assert evaluated == []


# -- dumps ---------------------------------------------------------------------------------------


def test_a_dump_is_numbered_and_made_where_the_graph_changed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def shout(state: State) -> None:
        state.node(aten.relu.default).name = "loud"

    with caplog.at_level(logging.DEBUG, "nmcompile"):
        run([Pass(passing), Pass(shout), Pass(passing), Pass(drop_relu)], State(), "tiny graph")
    dumps = [m for m in caplog.messages if "\n" in m]
    assert [m.partition("\n")[0] for m in dumps] == [
        "tiny graph, 00 before:",
        "tiny graph, 02 shout:",
        "tiny graph, 04 drop_relu:",
    ]
    assert ["relu" in m.partition("\n")[2] for m in dumps] == [True, True, False]
    times = [m for m in caplog.messages if re.fullmatch(r"tiny graph: \w+, \d+\.\d ms", m)]
    assert len(times) == 4


def test_a_graph_that_no_module_owns_is_shown_as_it_is() -> None:
    graph = fx.Graph()
    weight = graph.get_attr("weight")
    graph.output(graph.call_function(aten.t.default, (weight,)))
    assert "torch.ops.aten.t.default(weight)" in readable(graph)
    assert graph.owning_module is None
    owner = fx.GraphModule({"weight": torch.ones(2, 2)}, graph)
    other = fx.Graph()
    other.output(None)
    owner.graph = other
    assert "torch.ops.aten.t.default(weight)" in readable(graph)


SCRIPT = """
    import torch
    import nmcompile

    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64))
    policy = nmcompile.Policy(extends="full", execution="sparse")
    options = {"policy": policy, "nm.kernels": "generate"}
    step = torch.compile(model.bfloat16(), backend="nm_sparse", options=options)
    step(torch.randn(64, 64).bfloat16()).sum().backward()
"""


def dumps_of(title: str, steps: Sequence[Pass], changed: Sequence[str]) -> list[tuple[str, ...]]:
    """Title, number and name of the dump before all and of those passes that changed something."""
    names = {step.name: f"{number:02d}" for number, step in enumerate(steps, 1)}
    return [(title, "00", "before"), *((title, names[name], name) for name in changed)]


#: Every dump of the script: joint graph, then forward and backward, each where it changed.
REPLAYED = [
    *dumps_of("joint graph", JOINT, ("prune_forward", "prune_backward", "share_compressed")),
    *dumps_of("post-grad graph", POST_GRAD, ("fuse_producers",)),
    *dumps_of("post-grad graph", POST_GRAD, ("fuse_producers", "realise_seeds")),
]
#: An operator that is in a dump, and not in the one before it.
NEWCOMERS = {
    "prune_forward": "nm.compress",
    "prune_backward": "mvue",
    "share_compressed": "[1, 0], 2, 4, 'mvue'",
    "fuse_producers": "nm.fused_compress",
}


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What a process that compiles and trains writes to its log, and to its trace."""
    folder = tmp_path_factory.mktemp("replay")
    environment = {
        **os.environ,
        "TORCH_LOGS": "+nmcompile",
        "TORCH_TRACE": str(folder / "trace"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (trace,) = (folder / "trace").iterdir()
    return done.stderr, trace.read_text()


def follow(dumps: list[tuple[str, str]]) -> None:
    """Each dump holds code, and what its pass brought, which the dump before it has not."""
    before = ""
    for name, code in dumps:
        assert "torch.ops.aten.mm.default(" in code or "torch.ops.nm.mm.default(" in code
        if name in NEWCOMERS:
            assert NEWCOMERS[name] in code
            assert NEWCOMERS[name] not in before
        before = code


@pytest.mark.slow
def test_the_log_replays_both_pipelines(replay: tuple[str, str]) -> None:
    parts = re.split(r"((?:joint|post-grad) graph), (\d\d) (\w+):\n", replay[0])
    titles = list(zip(parts[1::4], parts[2::4], parts[3::4], strict=True))
    assert titles == REPLAYED
    follow([(name, code) for (_, _, name), code in zip(titles, parts[4::4], strict=True)])


#: What the trace holds of a dump between passes; the plan and the graphs are there as well.
_DUMP = re.compile(r'\{"artifact": \{"name": "nmcompile_[a-z_-]+_graph_\d\d_')


@pytest.mark.slow
def test_the_trace_holds_the_same_as_artifacts(replay: tuple[str, str]) -> None:
    # Of every entry: a line about it, then its text, each line behind a tab.
    entries = re.split(r"^V\d{4} [^{\n]*", replay[1], flags=re.M)
    ours = [e.partition("\n") for e in entries if _DUMP.match(e)]
    about = [json.loads(line)["artifact"] for line, _, _ in ours]
    assert {a["encoding"] for a in about} == {"string"}
    dumps = [(a["name"], code) for a, (_, _, code) in zip(about, ours, strict=True)]
    names = [f"nmcompile_{t.replace(' ', '_')}_{number}_{name}" for t, number, name in REPLAYED]
    assert [name for name, _ in dumps] == names
    follow([(name.split("_", 4)[4], code) for name, code in dumps])
