"""Inductor launches the generated kernels as a user's own: what it copies, sees and is handed.

There is no GPU here: kernels are compiled for one, and the graphs hold fake CUDA tensors.
"""

from __future__ import annotations

import ast
import importlib.util
import operator
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nmcompile.codegen import launch, loader
from nmcompile.codegen.device import host
from nmcompile.codegen.printer import parameters
from nmcompile.compressed import cusparselt
from nmcompile.passes.pipeline import POST_GRAD
from nmcompile.passes.plan import Kernels
from nmcompile.passes.run import run
from tests.kernels.specs import PROLOGUES, spec

DEVICE = Path(loader.__file__).parent / "device"
TARGET = GPUTarget("cuda", 90, 32)
aten, nm = torch.ops.aten, torch.ops.nm


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_capability", lambda *_: 90)
    monkeypatch.setattr(cusparselt, "reads", lambda *_: True)


def test_no_two_device_functions_share_a_name() -> None:
    """Inductor copies the functions that a kernel calls into one module, by name."""
    text = "\n".join(p.read_text() for p in sorted(DEVICE.glob("*.py")))
    names = re.findall(r"@triton\.jit\ndef (\w+)", text)
    assert len(names) > 20
    assert sorted(names) == sorted(set(names))


def ptx(kernel: Any, kind: Any) -> str:
    types = {"bfloat16": "*bf16", "float32": "*fp32", "bool": "*i1"}
    pointers = {i.name: types[i.dtype] for i in kind.inputs}
    pointers |= dict.fromkeys(("dense", "packed0", "packed1"), "*bf16")
    constants = {"ROWS": 64, "COLUMNS": 128, "FIT": "full", "ISA": 90}
    signature = {
        name: "*i64" if name == "seed" else pointers.get(name, "i32") for name in parameters(kind)
    } | dict.fromkeys(constants, "constexpr")
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(k),): v for k, v in constants.items()},
    )
    text: str = triton.compile(source, target=TARGET).asm["ptx"]
    return "\n".join(x for x in text.splitlines() if re.match(r"\s+[a-z@]", x) and ".loc" not in x)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mse", "mvue"])
def test_the_copy_that_inductor_makes_is_the_same_kernel(method: str, tmp_path: Path) -> None:
    from torch._inductor.codegen.wrapper import (
        user_defined_triton_kernel_transitive_closure_source_code,
    )

    kind = spec("silu_mul_bias", (1, 0), method, dtype="bfloat16")
    kernel = loader.load(kind)
    copied = user_defined_triton_kernel_transitive_closure_source_code(kernel)
    path = tmp_path / "copy.py"
    path.write_text(f"import triton\nimport triton.language as tl\n@triton.jit\n{copied}")
    module_spec = importlib.util.spec_from_file_location("copied_kernel", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    assert ptx(getattr(module, kind.name), kind) == ptx(kernel, kind)


@pytest.mark.slow
@pytest.mark.parametrize("prologue", [p for p in PROLOGUES if p != "copy"])
def test_every_prologue_compiles_for_a_gpu(prologue: str) -> None:
    kind = spec(prologue, (1,), "mse", dtype="bfloat16")
    assert "st.global" in ptx(loader.load(kind), kind)


class FakeDriver:
    def get_current_target(self) -> Any:
        return TARGET

    def get_current_device(self) -> int:
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.runtime.driver, "_active", FakeDriver())


def cuda_graph(mode: FakeTensorMode, rows: Any = 512) -> fx.Graph:
    """silu(x + b) with another reader, compressed both ways."""
    graph = fx.Graph()

    def given(name: str, *shape: Any, dtype: torch.dtype = torch.bfloat16) -> fx.Node:
        node = graph.placeholder(name)
        node.meta["val"] = torch.empty(*shape, dtype=dtype, device="cuda")
        return node

    def call(target: Any, *args: Any) -> fx.Node:
        node = graph.call_function(target, args)
        node.meta["val"] = target(*fx.node.map_arg(args, lambda n: n.meta["val"]))
        return node

    with mode:
        x, b = given("x", rows, 1024), given("b", 1024)
        seed = given("seed", 1, dtype=torch.int64)
        y = call(aten.silu.default, call(aten.add.Tensor, x, b))
        kinds = (2, 4, "mvue", "cusparselt_sm90")
        every = call(nm.compress.default, y, seed, [3, 4], [1, 0], *kinds)
        results = [call(operator.getitem, every, k) for k in (0, 1)]
        graph.output((*results, call(aten.mm.default, call(aten.permute.default, y, [1, 0]), y)))
    return graph


def test_inductor_is_handed_a_kernel_that_writes_its_results_alone(driver: None) -> None:
    from torch._higher_order_ops import triton_kernel_wrap as wrap

    mode = FakeTensorMode()
    graph = cuda_graph(mode)
    kernels = Kernels(graph)
    with mode:
        run(POST_GRAD, kernels, "graph")
    (kind,) = kernels.specs
    assert kernels.lowered == 1
    graph.lint()
    assert not graph.find_nodes(op="call_function", target=nm.fused_compress.default)
    (node,) = graph.find_nodes(op="call_function", target=wrap.triton_kernel_wrapper_functional)
    assert node.kwargs["tensors_to_clone"] == ["packed0", "packed1", "dense0"]
    table = wrap.kernel_side_table
    kernel = table.get_kernel(node.kwargs["kernel_idx"])
    (config,) = kernel.configs
    assert config.num_warps == host.tile("both", "mvue", computes=True).warps
    numbers = table.get_constant_args(node.kwargs["constant_args_idx"])
    tensors: Any = node.kwargs["kwargs"]
    assert set(tensors) | set(numbers) == {*parameters(kind), "ROWS", "COLUMNS", "FIT", "ISA"}
    assert (numbers["R"], numbers["C"], numbers["FIT"], numbers["ISA"]) == (512, 1024, "full", 90)


@pytest.mark.parametrize("kind", ["compress", "masks"])
def test_inductor_finds_what_a_kernel_writes_without_translating_it(
    driver: None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks twice for each call; a kernel of both orientations takes Triton half a second."""
    from torch._higher_order_ops import triton_kernel_wrap as wrap

    mode = FakeTensorMode()
    graph = cuda_graph(mode) if kind == "compress" else mask_graph(mode)
    with mode:
        run(POST_GRAD, Kernels(graph), "graph")
    new = hasattr(wrap, "identify_accessed_tensors")  # torch 2.13
    analyse = wrap.identify_accessed_tensors if new else wrap.identify_mutated_tensors
    for node in graph.find_nodes(op="call_function", target=wrap.triton_kernel_wrapper_functional):
        kernel = wrap.kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
        numbers = wrap.kernel_side_table.get_constant_args(node.kwargs["constant_args_idx"])
        given = {k: v.meta["val"] for k, v in node.kwargs["kwargs"].items()} | numbers
        shown, found = ast.unparse(kernel.fn.parse()), analyse(kernel, dict(given), {})
        monkeypatch.delattr(kernel.fn, "parse")
        whole = analyse(kernel, dict(given), {})
        assert shown != ast.unparse(kernel.fn.parse())
        if new:
            assert found.can_fuse_epilogue == whole.can_fuse_epilogue
            found, whole = ([a.read_writes.reads, a.read_writes.writes] for a in (found, whole))
            assert found[0] == whole[0]
            found, whole = ([w.name for w in writes] for _, writes in (found, whole))
        assert sorted(found) == sorted(whole) == sorted(node.kwargs["tensors_to_clone"])


def test_inductor_is_asked_for_the_strides_that_the_kernel_is_told(driver: None) -> None:
    """It promises their order alone, and pads long rows that are no multiple of 128 bytes."""
    from torch._higher_order_ops import triton_kernel_wrap as wrap
    from torch._inductor.fx_passes import post_grad

    mode = FakeTensorMode()
    graph = cuda_graph(mode)
    with mode:
        run(POST_GRAD, Kernels(graph), "graph")
        (node,) = graph.find_nodes(op="call_function", target=wrap.triton_kernel_wrapper_functional)
        given = {k: v.meta["val"].stride() for k, v in node.kwargs["kwargs"].items()}
        assert (given["packed0"], given["dense0"]) == ((576, 1), (1024, 1))
        # As Inductor does: what it lowers is the kernel that writes into its arguments.
        gm = fx.GraphModule({}, graph)
        with V.set_fake_mode(mode):
            post_grad.decompose_triton_kernel_wrapper_functional(gm.graph)
    mutation = torch.ops.higher_order.triton_kernel_wrapper_mutation
    (node,) = gm.graph.find_nodes(op="call_function", target=mutation)
    _, keywords = node.meta["eager_input_vals"]
    assert {k: v.stride() for k, v in keywords["kwargs"].items()} == given
    assert set(keywords["kwargs"]) == set(node.kwargs["kwargs"])


def test_autotuning_offers_two_numbers_of_warps() -> None:
    from torch._higher_order_ops import triton_kernel_wrap as wrap

    mode = FakeTensorMode()
    graph = cuda_graph(mode)
    with mode:
        run(POST_GRAD, Kernels(graph, autotune=True), "graph")
    (node,) = graph.find_nodes(op="call_function", target=wrap.triton_kernel_wrapper_functional)
    kernel = wrap.kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
    assert [c.num_warps for c in kernel.configs] == [4, 8]
    assert len(node.kwargs["grid"]) == 2  # one for each configuration


def test_symbolic_sizes_stay_an_operator() -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    context = StatelessSymbolicContext([DimDynamic.DYNAMIC, DimDynamic.STATIC])
    example = mode.from_tensor(
        torch.empty(512, 2), source=ConstantSource("rows"), symbolic_context=context
    )
    graph = cuda_graph(mode, example.shape[0])
    kernels = Kernels(graph)
    with mode:
        run(POST_GRAD, kernels, "graph")
    assert (len(kernels.specs), kernels.lowered) == (1, 0)
    assert graph.find_nodes(op="call_function", target=nm.fused_compress.default)


def test_what_the_library_packs_again_stays_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cusparselt, "reads", lambda *_: False)
    mode = FakeTensorMode()
    graph = cuda_graph(mode)
    kernels = Kernels(graph)
    with mode:
        run(POST_GRAD, kernels, "graph")
    assert (len(kernels.specs), kernels.lowered) == (1, 0)


def mask_graph(
    mode: FakeTensorMode, dtype: torch.dtype = torch.float32, rows: Any = 64
) -> fx.Graph:
    """A transposed weight under a transposable mask, and MVUE of its transpose."""
    graph = fx.Graph()
    with mode:
        w, seed = graph.placeholder("w"), graph.placeholder("seed")
        w.meta["val"] = torch.empty(rows, 48, dtype=dtype, device="cuda").t()
        seed.meta["val"] = torch.empty(1, dtype=torch.int64, device="cuda")
        calls = (
            (nm.prune.default, (w, None, 0, 2, 4, [1, 0], "transposable")),
            (nm.keep_mask.default, (w, seed, 7, 4, 8, [0], "mvue")),
        )
        for target, args in calls:
            node = graph.call_function(target, args)
            node.meta["val"] = target(*fx.node.map_arg(args, lambda n: n.meta["val"]))
        graph.output(tuple(graph.nodes)[2:])
    return graph


def test_masks_are_launched_by_inductor(driver: None) -> None:
    from torch._higher_order_ops import triton_kernel_wrap as wrap

    mode = FakeTensorMode()
    graph = mask_graph(mode)
    before = [n.meta["val"] for n in tuple(graph.nodes)[2:4]]
    kernels = Kernels(graph)
    with mode:
        run(POST_GRAD, kernels, "graph")
    assert kernels.lowered == 2
    calls = graph.find_nodes(op="call_function", target=wrap.triton_kernel_wrapper_functional)
    assert [n.kwargs["tensors_to_clone"] for n in calls] == [["y"], ["y"]]
    assert [s.name for s in kernels.masks] == [
        *("prune_tiles_transposable_2_4", "keep_mask_runs_mvue_4_8")
    ]
    numbers = wrap.kernel_side_table.get_constant_args(calls[1].kwargs["constant_args_idx"])
    assert numbers["stream0"] == 7
    (output,) = graph.find_nodes(op="output")
    after = [n.meta["val"] for n in output.args[0]]
    for value, was in zip(after, before, strict=True):
        assert (value.shape, value.stride(), value.dtype) == (was.shape, was.stride(), was.dtype)


def test_a_mask_and_what_computes_its_operand_are_one_launch(driver: None) -> None:
    from torch._higher_order_ops import triton_kernel_wrap as wrap

    mode, graph = FakeTensorMode(), fx.Graph()
    with mode:
        gate, bias = graph.placeholder("gate"), graph.placeholder("bias")
        gate.meta["val"] = torch.empty(64, 48, device="cuda")
        bias.meta["val"] = torch.empty(48, device="cuda")
        made: list[fx.Node] = []
        for target, args in (
            (aten.add.Tensor, (gate, bias)),
            (aten.relu.default, ()),
            (nm.prune.default, (None, 0, 2, 4, [1], "mse")),
        ):
            node = graph.call_function(target, (*made[-1:], *args))
            node.meta["val"] = target(*fx.node.map_arg(node.args, lambda n: n.meta["val"]))
            made.append(node)
        product = graph.call_function(aten.mm.default, (made[2], made[1]))
        product.meta["val"] = torch.empty(64, 48, device="cuda")
        graph.output((made[2], product))
        kernels = Kernels(graph)
        run(POST_GRAD, kernels, "graph")
    assert [s.name for s in kernels.masks] == ["prune_runs_mse_2_4_relu"]
    (call,) = graph.find_nodes(op="call_function", target=wrap.triton_kernel_wrapper_functional)
    assert set(call.kwargs["kwargs"]) == {"input_0", "input_1", "y", "dense"}
    assert call.kwargs["tensors_to_clone"] == ["y", "dense"]
    numbers = wrap.kernel_side_table.get_constant_args(call.kwargs["constant_args_idx"])
    assert numbers["C"] == 48
    assert not graph.find_nodes(op="call_function", target=aten.relu.default)


def test_masks_without_a_kernel_stay_operators() -> None:
    shapes = FakeTensorMode(shape_env=ShapeEnv())
    context = StatelessSymbolicContext([DimDynamic.DYNAMIC, DimDynamic.STATIC])
    example = shapes.from_tensor(
        torch.empty(512, 2), source=ConstantSource("rows"), symbolic_context=context
    )
    plain = FakeTensorMode()
    for mode, graph in (
        (plain, mask_graph(plain, torch.float64)),
        (shapes, mask_graph(shapes, rows=example.shape[0])),
    ):
        kernels = Kernels(graph)
        with mode:
            run(POST_GRAD, kernels, "graph")
        assert kernels.lowered == 0
        assert graph.find_nodes(op="call_function", target=nm.prune.default)
