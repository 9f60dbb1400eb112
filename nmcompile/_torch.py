"""Every private PyTorch API that the package uses (those of Dynamo: ``_dynamo``), guarded by name.

A missing one raises an error with the torch version instead of an ImportError somewhere inside.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from nmcompile.errors import NMError
from nmcompile.undisturbed import undisturbed


def private(module: str, name: str) -> Any:
    """``getattr(import_module(module), name)``.

    Raises:
        NMError: this torch has no such thing; the message names both.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise NMError(
            f"torch {torch.__version__} has no {module}.{name}, which nmcompile needs; "
            "supported are torch 2.11 to 2.15"
        ) from error


CustomGraphPass: Any = private("torch._inductor.custom_graph_pass", "CustomGraphPass")
inductor_config: Any = private("torch._inductor", "config")
functorch_config: Any = private("torch._functorch", "config")
FakeTensor: Any = private("torch._subclasses.fake_tensor", "FakeTensor")
FakeTensorMode: Any = private("torch._subclasses.fake_tensor", "FakeTensorMode")
HigherOrderOperator: Any = private("torch._ops", "HigherOrderOperator")
OpOverload: Any = private("torch._ops", "OpOverload")
DisableAutocast: Any = private("torch._C", "_DisableAutocast")
storage_use_count: Any = private("torch._C", "_storage_Use_Count")
ConvNd: Any = private("torch.nn.modules.conv", "_ConvNd")
TorchDispatchMode: Any = private("torch.utils._python_dispatch", "TorchDispatchMode")
tree_leaves: Any = private("torch.utils._pytree", "tree_leaves")
tree_map: Any = private("torch.utils._pytree", "tree_map")
tree_map_only: Any = private("torch.utils._pytree", "tree_map_only")


@undisturbed
def compile_fx(
    gm: torch.fx.GraphModule, inputs: Any, patches: dict[str, Any], inner: Any = None
) -> Any:
    """Inductor's compiler with these settings; ``inner`` replaces its code generation.

    Kernels that we hand it are launched as its own are, unless a setting says otherwise: as it
    launches a user's, each costs the host tens of microseconds more.
    """
    run = private("torch._inductor.compile_fx", "compile_fx")
    inner = inner or private("torch._inductor.compile_fx", "compile_fx_inner")
    name = "static_launch_user_defined_triton_kernels"
    if hasattr(inductor_config, name):
        patches = {name: True, **patches}
    # A backward may be compiled later, by autograd.
    return run(gm, inputs, config_patches=patches, inner_compile=undisturbed(inner))


def inductor_settings(mode: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Inductor's settings for a mode or options, checked as ``backend="inductor"`` checks them."""
    wrapper = private("torch", "_TorchCompileInductorWrapper")
    return dict(wrapper(mode, options, None).config)


def records_cuda_graphs(options: Mapping[str, Any] | None) -> bool:
    """Whether Inductor replays CUDA graphs under these options."""
    given = dict(options or {}).get("triton.cudagraphs")
    return bool(inductor_config.triton.cudagraphs if given is None else given)


def inductor_option_names() -> list[str]:
    """Every option that Inductor knows."""
    return list(inductor_config.get_config_copy())


def graph_passes(configured: Any) -> tuple[Any, ...]:
    """A custom-pass setting as a tuple: it may be nothing, one pass, or a list of them."""
    if configured is None:
        return ()
    return tuple(configured) if isinstance(configured, (list, tuple)) else (configured,)


def is_fallback(target: Any) -> bool:
    """Whether Inductor calls PyTorch's own kernel of the operator."""
    return target in private("torch._inductor.lowering", "fallbacks")


def real_tensors() -> Any:
    """A context in which tensors are real although a fake mode is active."""
    return private("torch._subclasses.fake_tensor", "unset_fake_temporarily")()


def triton_kernel_call(
    graph: torch.fx.Graph,
    kernel: Any,
    grid: tuple[int, ...],
    tensors: dict[str, torch.fx.Node],
    numbers: dict[str, Any],
    written: list[str],
) -> torch.fx.Node:
    """A call of a user's Triton kernel as Inductor knows it; its value is a dict of results.

    Args:
        graph: where it is added, at the insertion point.
        kernel: a ``triton.JITFunction``.
        grid: number of programs.
        tensors, numbers: the arguments by name.
        written: the names of those tensors that the kernel writes.
    """
    module = "torch._higher_order_ops.triton_kernel_wrap"
    table = private(module, "kernel_side_table")
    keywords = {
        "kernel_idx": table.add_kernel(kernel),
        "constant_args_idx": table.add_constant_args(numbers),
        "grid": [grid] * max(1, len(getattr(kernel, "configs", ()))),
        "tma_descriptor_metadata": {},
        "kwargs": tensors,
        "tensors_to_clone": written,
    }
    functional = private(module, "triton_kernel_wrapper_functional")
    return keep_strides(graph.call_function(functional, (), keywords))


def keep_strides(node: torch.fx.Node) -> torch.fx.Node:
    """Let Inductor hand a kernel or operator its tensors with the strides that the graph says.

    It would keep their order alone, and pad rows to whole cache lines. An operator needs the tag
    ``needs_exact_strides`` as well.
    """
    given = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    node.meta["eager_input_vals"] = given
    return node


def compute_once(node: torch.fx.Node) -> None:
    """Let Inductor write a node's value to memory once, instead of inlining it into each reader."""
    node.meta["inductor_realize_to_strides"] = True


def seed_of_draw(node: torch.fx.Node) -> tuple[torch.fx.Node, int] | None:
    """Of which of Inductor's seeds, ``[count]`` int64, a ``randint`` of a graph makes its number.

    None for every other node. The seeds themselves are 64-bit numbers of PyTorch's generator.
    """
    module = "torch._inductor.inductor_prims"
    if node.target is not private(module, "randint"):
        return None
    number = node.args[3]
    if not isinstance(number, torch.fx.Node):
        return None
    if number.target is not private(module, "lookup_seed"):
        return None
    seeds, index = number.args
    assert isinstance(seeds, torch.fx.Node)
    assert isinstance(index, int)
    return seeds, index


def process_group_store() -> Any:
    """The key-value store that the processes of this run met at; None for a backend without one."""
    try:
        return private("torch.distributed.distributed_c10d", "_get_default_store")()
    except (RuntimeError, ValueError):
        return None


def process_group_size() -> int:
    """How many processes train together; 1 where no process group was made."""
    dist = torch.distributed
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is a ``DTensor``, of which each process holds a part."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def is_wrapper(value: Any) -> bool:
    """Whether it is a tensor that a graph takes apart into others, such as a ``DTensor``."""
    return bool(private("torch.utils._python_dispatch", "is_traceable_wrapper_subclass")(value))


@contextmanager
def without_gradient_hooks(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """A context in which no hook is called that waits for a parameter's gradient to be ready."""
    hooks = [getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters]
    kept = [(found, dict(found)) for found in hooks if found]
    for found, _ in kept:
        found.clear()
    try:
        yield
    finally:
        for found, before in kept:
            found.update(before)


def is_composite(op: Any) -> bool:
    """Whether an operator is always made of others, and has no kernel of its own."""
    if not isinstance(op, OpOverload):
        return False
    has_kernel = private("torch._C", "_dispatch_has_kernel_for_dispatch_key")
    return has_kernel(op.name(), "CompositeImplicitAutograd") and not has_kernel(op.name(), "CPU")


def argument_names(op: Any) -> tuple[str, ...]:
    """The names of an operator's arguments, as its schema orders them."""
    return tuple(argument.name for argument in op._schema.arguments)


def is_traced() -> bool:
    """Whether a structured trace is being written (``TORCH_TRACE``)."""
    return bool(private("torch._logging._internal", "trace_log").handlers)


def trace_artifact(name: str, text: str) -> None:
    """Add a text to the structured trace, if one is written."""
    about = {"name": name, "encoding": "string"}
    trace = private("torch._logging", "trace_structured")
    trace("artifact", metadata_fn=lambda: about, payload_fn=lambda: text)


def debug_folder() -> Path | None:
    """Where Inductor writes what is for debugging (``TORCH_COMPILE_DEBUG=1``); else None."""
    if not inductor_config.trace.enabled:
        return None
    chosen = inductor_config.trace.debug_dir
    return Path(chosen or private("torch._dynamo.utils", "get_debug_dir")()) / "torchinductor"


def graph_name() -> str:
    """What Inductor's folders call the graph in hand, or ``cached_0_1``: of a compile id 0/1."""
    module = "torch._functorch._aot_autograd.logging_utils"
    compiled, _, _ = private(module, "get_aot_compilation_context")()
    if compiled:
        return str(private(module, "get_aot_graph_name")())
    compile_id = private("torch._guards", "CompileContext").current_compile_id()
    return f"cached_{compile_id}".replace("/", "_")


def load_cpp(source: str, open_library: Callable[[Path], Any]) -> Any:
    """A C++ library, built and cached by Inductor, as ``open_library`` opens it.

    What it and the compiler raise is raised, and nothing is kept of a library that was not opened.
    """
    # Slow to import, so not before it is used.
    base: Any = private("torch._inductor.codecache", "CppCodeCache")

    class Ours(base):  # type: ignore[misc,valid-type]
        cache: ClassVar[dict[str, Any]] = {}

        @staticmethod
        def _load_library_inner(path: str, key: str) -> Any:
            return open_library(Path(path))

    return Ours.load(source)


def ask_vector_instructions() -> None:
    """Let Inductor find out what the processor can do; later calls know it."""
    private("torch._inductor.cpu_vec_isa", "pick_vec_isa")()


def cache_dir() -> Path:
    """Inductor's cache folder (``TORCHINDUCTOR_CACHE_DIR``)."""
    return Path(private("torch._inductor.runtime.cache_dir_utils", "cache_dir")())


def graphs_around() -> tuple[list[torch.fx.GraphModule], torch.fx.GraphModule | None]:
    """The graphs inside of which Inductor runs its joint passes now, the outermost first.

    Inductor hands a pass one graph and says nothing of the others; its frames do. The last one is
    the graph in hand. Of a region's it is a copy, made before any pass saw it: of the second.
    """
    passes = private("torch._inductor.compile_fx", "_recursive_joint_graph_passes")
    regions = private(
        "torch._functorch._aot_autograd.graph_compile", "run_joint_graph_passes_on_hops"
    )
    found: list[torch.fx.GraphModule] = []
    original: torch.fx.GraphModule | None = None
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not compile_fx.__code__:
        values = frame.f_locals
        if frame.f_code is passes.__code__:
            found.append(values["gm"])
        elif frame.f_code is regions.__code__:
            if len(found) == 1:
                original = getattr(values["joint_gm"], values["node"].args[0].target)
            found.append(values["joint_gm"])
        frame = frame.f_back
    return found[::-1], original


def input_origin(node: torch.fx.Node) -> tuple[str, int | None] | None:
    """Where an AOTAutograd placeholder comes from: ("plain", index), ("weight", None), ...

    Subclass attributes and synthetic bases count as the input that they are part of. None for a
    graph whose placeholders carry no description (a sub-graph, or one traced by hand).
    """
    desc = node.meta.get("desc")
    return None if desc is None else _input(desc)


def outputs_of(graph: torch.fx.Graph) -> list[tuple[torch.fx.Node, str, Any]]:
    """What each output of an AOTAutograd graph is: (node, what, origin).

    ``what`` is "gradient" (of the input with that ``origin``), "differentiable" (an output of the
    forward that a tangent belongs to), "plain" (any other) or "" (nothing says). Where the backward
    reads some tangents and not others (a Function that ignores the gradient of a metric), what
    these belong to is plain.
    """
    (output,) = graph.output_node().args
    values = output if isinstance(output, (list, tuple)) else [output]
    descs = graph.output_node().meta.get("desc") or [None] * len(values)
    descs = descs[-len(values) :]  # tokens of effects come first, and are no output by then
    inputs = [(n, _base(n.meta.get("desc"))) for n in graph.nodes if n.op == "placeholder"]
    every = [(n, _base(d.output)) for n, d in inputs if type(d).__name__ == "TangentAOTInput"]
    tangents = [output for n, output in every if n.users] or [output for _, output in every]
    found: list[tuple[torch.fx.Node, str, Any]] = []
    for value, described in zip(values, descs, strict=True):
        desc = _base(described)
        if not isinstance(value, torch.fx.Node):
            continue
        if type(desc).__name__ == "GradAOTOutput":
            found.append((value, "gradient", _input(desc.grad_of)))
        elif desc is None:
            found.append((value, "", None))
        else:
            found.append((value, "differentiable" if desc in tangents else "plain", None))
    return found


def _base(desc: Any) -> Any:
    """The input or output that an attribute of a subclass, or a base of aliases, is part of."""
    while (base := getattr(desc, "base", None) or getattr(desc, "base_of", None)) is not None:
        desc = base
    return desc


def _input(desc: Any) -> tuple[str, int | None]:
    desc = _base(desc)
    name = type(desc).__name__
    if name in ("ParamAOTInput", "BufferAOTInput"):
        return "weight", None
    if name == "TangentAOTInput":
        return "tangent", None
    return ("plain", desc.idx) if name == "PlainAOTInput" else ("other", None)
