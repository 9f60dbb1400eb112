"""What Dynamo knows while it compiles a graph and does not tell a backend, read from its frames.

Everything here is private to PyTorch; each use is guarded, and a missing one is an error that names
the torch version (``_torch.private``) or, where nothing but a report depends on it, no answer.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import checkpoint

from nmcompile._torch import private

BackendCompilerFailed: Any = private("torch._dynamo.exc", "BackendCompilerFailed")

#: Policies are written for the model inside of these.
_COPIES = (nn.parallel.DistributedDataParallel, nn.DataParallel)


@dataclass(frozen=True)
class Caller:
    """Who asked for the graph that is being compiled.

    ``wrapper`` is the backend with its options, which Dynamo compares to decide whether compiled
    code may be reused. ``whole`` is the module that the user compiled. ``roots`` are the modules
    among the arguments of the function in hand: ``whole`` itself, or a part of it where a graph
    break (or a hook) made Dynamo compile that part on its own. Nothing and empty where unknown.
    ``prefix`` is what a data-parallel wrapper around ``whole`` adds to the paths inside of it.
    ``function`` is the plain function that the user compiled, where it is no module.
    """

    wrapper: Any = None
    whole: nn.Module | None = None
    roots: tuple[nn.Module, ...] = ()
    prefix: str = ""
    function: Any = None

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Caller:
        """Read the frames that are calling the backend ``function`` now."""
        output_graph = private("torch._dynamo.output_graph", "OutputGraph")
        wrapper_class = private("torch", "_TorchCompileWrapper")
        frames = list(_frames_above(function))
        owners = [frame.f_locals.get("self") for frame in frames]
        wrapper = owners[0] if owners and isinstance(owners[0], wrapper_class) else None
        graph = next((o for o in owners if isinstance(o, output_graph)), None)
        scope = graph.local_scope.values() if graph is not None else ()
        roots = tuple(v for v in scope if isinstance(v, nn.Module))
        prefix = "module" if any(isinstance(r, _COPIES) for r in roots) else ""
        unwrapped = tuple(r.module if isinstance(r, _COPIES) else r for r in roots)
        return cls(wrapper, _whole(frames), unwrapped, prefix, _compiled_function(frames))

    @property
    def in_whole(self) -> bool:
        """Whether the function in hand is the user's own, as far as that is known."""
        return self.whole is None or not self.roots or any(r is self.whole for r in self.roots)


def ends_in_graph_break(gm: fx.GraphModule) -> bool:
    """Whether more of the same function follows in another graph."""
    reason = getattr(gm, "compile_subgraph_reason", None)
    return bool(getattr(reason, "graph_break", False))


def differentiates(gm: fx.GraphModule) -> bool:
    """Whether the function itself takes derivatives: ``torch.func.grad``, ``torch.func.jvp``."""
    graphs = [m.graph for m in gm.modules() if isinstance(m, fx.GraphModule)]
    targets = {n.target for g in graphs for n in g.nodes if n.op == "call_function"}
    names = {getattr(target, "__name__", "") for target in targets}
    return torch.autograd.grad in targets or not names.isdisjoint(("_autograd_grad", "_make_dual"))


def surroundings() -> tuple[str, str]:
    """Inside of what the function in hand is compiled, and the name of that: ("", "") for nothing.

    "engine": the autograd engine is running a backward, and calls it from a Function's backward or
    a hook; the name is the function's own. What a checkpoint recomputes there is a forward.
    "function": the forward of a custom ``autograd.Function`` of that name.
    "optimizer": the step of an optimizer of that class, where gradients are off (a closure turns
    them on).
    """
    landmarks, name = _landmarks(), ""
    frame: Any = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        what = landmarks.get(id(code))
        if what == "recompute":
            return "", ""
        if what == "engine":
            return "engine", name
        if what == "apply" and frame.f_locals["cls"] is not checkpoint.CheckpointFunction:
            return "function", frame.f_locals["cls"].__qualname__
        owner = None
        if what == "compiler":
            graph = frame.f_locals["self"]
            name, owner = graph.root_tx.f_code.co_qualname, graph.local_scope.get("self")
        elif "step" in code.co_name:
            owner = frame.f_locals.get("self")
        if isinstance(owner, torch.optim.Optimizer) and not torch.is_grad_enabled():
            return "optimizer", type(owner).__qualname__
        frame = frame.f_back
    # On a GPU the engine has threads of its own, which nothing in Python called.
    return ("engine", name) if in_engine() else ("", "")


def in_engine() -> bool:
    """Whether the autograd engine is running a backward on this thread, recomputations included."""
    return bool(_graph_task() != -1)


_graph_task: Any = private("torch._C", "_current_graph_task_id")


@functools.cache
def _landmarks() -> dict[int, str]:
    """The code of frames that tell where a function runs, by identity: these functions stay."""
    hook = private("torch.utils.checkpoint", "_checkpoint_hook").__init__.__code__
    unpack = [c for c in hook.co_consts if getattr(c, "co_name", "") == "unpack_hook"]
    recomputes = [checkpoint.CheckpointFunction.backward.__code__, *unpack]
    apply = vars(torch.autograd.Function)["apply"].__func__.__code__
    engine = private("torch.autograd.graph", "_engine_run_backward").__code__
    compiler = private("torch._dynamo.output_graph", "OutputGraph").call_user_compiler.__code__
    found = dict.fromkeys(map(id, recomputes), "recompute")
    return found | {id(apply): "apply", id(engine): "engine", id(compiler): "compiler"}


def is_grad_of_tensor(placeholder: fx.Node) -> bool:
    """Whether an input of a Dynamo graph was read as the ``.grad`` of a tensor."""
    return getattr(_source(placeholder), "member", None) == "grad"


def is_module_state(placeholder: fx.Node) -> bool:
    """Whether an input of a Dynamo graph is a parameter or a buffer of a module.

    Dynamo marks them as inputs whose address is static; so it does with their ``.grad``, and with
    what the user or an optimizer says is static.
    """
    if "_dynamo_static_input_type" not in (placeholder.meta.get("tensor_dict") or {}):
        return False
    source = _source(placeholder)
    if source is None:
        return True
    where = source.guard_source
    where = where() if callable(where) else where
    of_module = where.is_unspecialized_nn_module() or where.is_specialized_nn_module()
    return bool(of_module) and not is_grad_of_tensor(placeholder)


def source_of_input(placeholder: fx.Node) -> str:
    """The expression that an input of a Dynamo graph stands for; empty where none is known."""
    name = getattr(_source(placeholder), "name", "")
    return str(name() if callable(name) else name)


def _source(placeholder: fx.Node) -> Any:
    return getattr(placeholder.meta.get("grapharg"), "source", None)


def in_compiled_autograd() -> bool:
    """Whether the graph in hand is a backward that compiled autograd captured."""
    return bool(private("torch._dynamo.compiled_autograd", "in_compiled_autograd_region"))


def _frames_above(function: Callable[..., Any]) -> Iterator[Any]:
    """The frames that are calling ``function``, the nearest first; none if nothing calls it."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not getattr(function, "__code__", None):
        frame = frame.f_back
    while frame is not None and (frame := frame.f_back) is not None:
        yield frame


def _whole(frames: list[Any]) -> nn.Module | None:
    """The module behind the nearest call of something that ``torch.compile`` returned."""
    optimized_module = private("torch._dynamo", "OptimizedModule")
    for i, frame in enumerate(frames):
        if frame.f_code.co_name != "compile_wrapper":
            continue
        fn = frame.f_locals.get("fn")
        for outer in frames[i + 1 : i + 4]:  # OptimizedModule.__call__ stands right above
            owner = outer.f_locals.get("self")
            code = getattr(getattr(owner, "forward", None), "__code__", None)
            if isinstance(owner, optimized_module) and code is frame.f_code:
                return module_of(owner._orig_mod)
        modules = [v for v in closed_over(fn) if isinstance(v, nn.Module)]
        return module_of(getattr(fn, "__self__", modules[0] if len(modules) == 1 else None))
    return None


def _compiled_function(frames: list[Any]) -> Any:
    """The plain function of the nearest call of something that ``torch.compile`` returned."""
    wrappers = (f.f_locals.get("fn") for f in frames if f.f_code.co_name == "compile_wrapper")
    fn = next(wrappers, None)
    return fn if inspect.isfunction(fn) else None


def closed_over(fn: Any) -> Iterator[Any]:
    """What a function refers to in the function around it."""
    for cell in getattr(fn, "__closure__", None) or ():
        with suppress(ValueError):  # a name that has no value yet
            yield cell.cell_contents


def module_of(value: Any) -> nn.Module | None:
    """The module itself, inside of a data-parallel wrapper; None for anything else."""
    value = value.module if isinstance(value, _COPIES) else value
    return value if isinstance(value, nn.Module) else None


def is_compiled_wrapper(value: Any) -> bool:
    """Whether it is what ``torch.compile`` made of a module."""
    return isinstance(value, private("torch._dynamo", "OptimizedModule"))


def inside_wrappers(model: nn.Module) -> nn.Module:
    """The user's own module inside of what ``torch.compile`` and data-parallel wrappers made."""
    inner: Any = model._orig_mod if is_compiled_wrapper(model) else model
    return inner.module if isinstance(inner, _COPIES) else inner  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Attempt:
    """A function that Dynamo is about to compile within a call of what ``torch.compile`` returned.

    ``wrapper`` and ``whole`` are those of ``Caller``. ``limit`` is how many versions of the
    function there are where Dynamo makes no more and runs it eagerly; None where it compiles it.
    """

    wrapper: Any
    whole: nn.Module | None
    function: str
    limit: int | None


Ended = Callable[[Attempt, list[str], BaseException | None], None]


class _End:
    """What happens at the end of the user's call: Dynamo runs it with its own clean-ups."""

    def __init__(self, attempt: Attempt, ended: Ended) -> None:
        self.attempt, self.ended, self.before = attempt, ended, untraceable()

    def __call__(self) -> None:
        error = sys.exc_info()[1]  # of the call, which is about to be raised
        self.ended(self.attempt, untraceable_since(self.before), error)


def watch(
    backend: Any,
    started: Callable[[Attempt], None],
    ended: Ended,
) -> None:
    """Be told of what Dynamo compiles for ``backend``, and let each call have versions of its own.

    Dynamo keeps eight versions of a function and runs it eagerly from then on. All models of one
    class share their functions, and all of PyTorch's own classes share one, so that the ninth of
    them would not be compiled. For ``backend`` only the versions of the same ``torch.compile``
    call are counted.

    Args:
        backend: a function that is given to ``torch.compile``, by name or as it is.
        started: called with everything that is about to be compiled.
        ended: called once for each call of the user in which something was, when it returns,
            with what Dynamo could not trace, or when it raises, with the error.
    """

    def tell() -> str:
        frames = list(_frames_above(tell))
        call = next((f for f in frames if f.f_code.co_name == "compile_wrapper"), None)
        frame = next((f for f in frames if f.f_code.co_name == "_compile"), None)
        wrapper = _wrapper(call.f_locals.get("self")) if call is not None else None
        if call is None or frame is None or getattr(wrapper, "compiler_fn", None) is not backend:
            return ""
        attempt = _count_own(frame.f_locals, wrapper, _whole(frames))
        ends = call.f_locals.get("cleanups")
        if isinstance(ends, list) and not any(isinstance(end, _End) for end in ends):
            ends.append(_End(attempt, ended))
        started(attempt)
        return ""

    private("torch._dynamo", "register_hook_for_recompile_user_context")(tell)


def _wrapper(context: Any) -> Any:
    """What ``torch.compile`` was given as a backend, inside of what Dynamo wraps it in."""
    found = getattr(context, "callback", None)
    names = ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable")
    while inner := next((i for n in names if (i := getattr(found, n, None)) is not None), None):
        found = inner
    return found


def wrapper_behind(call: Any) -> Any:
    """The backend with its options behind what ``torch.compile`` made; None behind others."""
    cells = closed_over(getattr(call, "__func__", call))
    contexts = (value for value in cells if hasattr(value, "callback"))
    return next((found for c in contexts if (found := _wrapper(c)) is not None), None)


def _count_own(scope: dict[str, Any], wrapper: Any, whole: nn.Module | None) -> Attempt:
    """Let Dynamo count the versions of this call alone, of those that the function has."""
    entries, entry = list(scope.get("cache_entries") or ()), scope.get("cache_entry")
    while "cache_entries" not in scope and entry is not None:  # torch 2.11 has a linked list
        entries.append(entry)
        entry = entry.next
    own = sum(getattr(e, "backend", None) is wrapper for e in entries)
    with suppress(AttributeError):
        size = scope["cache_size"]
        size.num_cache_entries_with_same_id_matched_objs = min(
            own, size.num_cache_entries_with_same_id_matched_objs
        )
    config, number = private("torch._dynamo", "config"), scope["compile_id"].frame_compile_id
    limits = [(own, config.recompile_limit), (number or 0, config.accumulated_recompile_limit)]
    limit = next((most for found, most in limits if found >= most), None)
    return Attempt(wrapper, whole, scope["code"].co_name, limit)


def untraceable() -> Counter[str]:
    """What Dynamo could not trace in this process so far, as it says it."""
    counters = private("torch._dynamo.utils", "counters")
    return Counter(counters["unimplemented"]) + Counter(counters["graph_break"])


def untraceable_since(before: Counter[str]) -> list[str]:
    """The same of what came since, in few words."""
    return [_short(text) for text in untraceable() - before]


def _short(text: str) -> str:
    """The first sentences of one of Dynamo's explanations: what it met, why, and one hint."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marks = ("Explanation: ", "Hint: ")
    found = [next((n.removeprefix(m) for n in lines if n.startswith(m)), "") for m in marks]
    return ". ".join(part.rstrip(".") for part in (lines[0], *found) if part)


def without_recompile_limit() -> AbstractContextManager[Any]:
    """A context in which Dynamo makes as many versions of a function as are asked for."""
    config = private("torch._dynamo", "config")
    limits = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), sys.maxsize)
    context: AbstractContextManager[Any] = config.patch(**limits)
    return context


@contextmanager
def without_function_names() -> Iterator[None]:
    """A context in which Dynamo's log of calls says no names of functions, only files and lines.

    For these names it splits every source file of a model into tokens, log or no log.
    """
    translator = private("torch._dynamo", "symbolic_convert")
    before = getattr(translator, "get_funcname", None)
    if before is not None:
        translator.get_funcname = lambda *_: None
    try:
        yield
    finally:
        if before is not None:
            translator.get_funcname = before


def compiled_function_is_skipped(module: nn.Module) -> bool:
    """Whether ``module.compile()`` would silently do nothing: Dynamo skips PyTorch's own classes.

    Seen in torch 2.13 for ``nn.Sequential`` and ``nn.TransformerEncoderLayer``; mended in 2.15.
    """
    forward = type(module).forward
    return str(getattr(forward, "__module__", "")).split(".")[0] == torch.__name__
