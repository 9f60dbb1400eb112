"""The options of the backend: ours are checked here, Inductor's by Inductor."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nmcompile import _torch
from nmcompile.capture.regions import Region
from nmcompile.errors import ArgumentError, OptionError, nearest, shown
from nmcompile.execution.targets import Target
from nmcompile.policy import Policy

OURS = ("policy", "nm.autotune", "nm.kernels", "nm.meter", "nm.region")

#: Where compress kernels are generated: on CUDA; there, but without their producers; there, but
#: launched by an operator instead of by Inductor; also on the CPU (where Triton's interpreter or
#: their oracle runs them: to look at them and to test them); nowhere.
KERNELS: dict[str, tuple[str, ...]] = {
    "auto": ("cuda",),
    "unfused": ("cuda",),
    "operators": ("cuda",),
    "generate": ("cuda", "cpu"),
    "reference": (),
}

#: Under which steps are replayed as CUDA graphs.
CUDA_GRAPHS = {"triton.cudagraphs": True}

#: What people put into the options, and torch.compile takes beside them.
_ARGUMENTS = ("backend", "dynamic", "fullgraph", "mode", "options")

#: Settings of Inductor without which products would stay dense in silence.
_NEEDED = (
    ("use_joint_graph_passes", True, "the products are pruned in these passes"),
    ("selective_decompose", False, "it traces the graph anew and loses what its inputs are"),
)


@dataclass(frozen=True)
class Settings:
    """The policy, our other options, and the settings that go to Inductor.

    ``autotune``: measure dense and sparse products while compiling instead of predicting their
    times. ``kernels``: a word of ``KERNELS``. ``region``: the modules that share the compiled code.
    ``target``: the GPU to plan for; None for the device of each product. ``observer``: the number
    of the meter that a model has; None for none.
    """

    policy: Policy
    inductor: dict[str, Any] = field(default_factory=dict)
    autotune: bool = False
    kernels: str = "auto"
    region: Region = field(default_factory=Region)
    target: Target | None = None
    observer: int | None = None


class ReadPolicy(str):
    """A policy option whose file has been read: equal only while the content is the same.

    Dynamo reuses compiled code when the options compare equal. Python asks the subclass first, so
    a fresh ``"policy.toml"`` in a later ``torch.compile`` call compares by the file as it is then.
    A recompilation takes the policy that was read at first.
    """

    __slots__ = ("digest", "policy")
    digest: str
    policy: Policy

    def __new__(cls, text: str, policy: Policy) -> ReadPolicy:
        self = super().__new__(cls, text)
        self.digest, self.policy = policy.digest, policy
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:  # of copies
        return str(self), self.policy

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str) or str.__ne__(self, other):
            return False
        if isinstance(other, ReadPolicy):
            return self.digest == other.digest
        try:
            return self.digest == Policy.resolve(str(other)).digest
        except ValueError:
            return False  # let the compilation raise the error

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def read_options(
    mode: str | None, options: Mapping[str, Any] | None, wrapper: Any = None
) -> Settings:
    """Check the options and read the policy.

    Args:
        mode: Inductor's mode.
        options: as given to ``torch.compile``.
        wrapper: the ``torch.compile`` wrapper; its copy of the options then remembers the policy
            file's content.

    Raises:
        OptionError: an option that neither nmcompile nor Inductor knows, or a setting of Inductor
            under which nothing could be pruned.
        PolicyError: the policy cannot be read.
    """
    if options is not None and not isinstance(options, Mapping):
        raise ArgumentError(
            f'options = {shown(options)}: write a mapping, such as {{"policy": "full"}}'
        )
    options = dict(options or {})
    known = {name.replace("-", "_") for name in _torch.inductor_option_names()}
    for name in options:
        if not isinstance(name, str) or (name not in OURS and name.replace("-", "_") not in known):
            hint = nearest(str(name), {*known, *OURS})
            if name in _ARGUMENTS:
                hint = f"write it beside options, torch.compile(..., {name}=...)"
            raise OptionError(
                f"unknown option {shown(name)} of backend nm_sparse: {hint} "
                f"(nmcompile's own: {', '.join(OURS)}; all others are Inductor's)"
            )
    source = options.pop("policy", None)
    policy = source.policy if isinstance(source, ReadPolicy) else Policy.resolve(source)
    if isinstance(source, (str, os.PathLike)) and wrapper is not None:
        pinned = ReadPolicy(os.fspath(source), policy)
        kept = {**wrapper.kwargs["options"], "policy": pinned}
        wrapper.kwargs = {**wrapper.kwargs, "options": kept}
    autotune = _choice(options, "nm.autotune", False, (False, True))
    kernels = _choice(options, "nm.kernels", "auto", tuple(KERNELS))
    region = _region(options.pop("nm.region", ()))
    observer = options.pop("nm.meter", None)
    if observer is not None and type(observer) is not int:
        raise OptionError(f"nm.meter = {shown(observer)}: nmcompile.telemetry writes it, leave it")
    inductor = _torch.inductor_settings(mode, options)
    for name, needed, why in _NEEDED:
        if inductor.get(name, getattr(_torch.inductor_config, name, needed)) is not needed:
            origin = f"mode={mode!r} sets it" if mode and mode != "default" else "it is set"
            raise OptionError(
                f"backend nm_sparse needs {name} = {needed}, but {origin} to {not needed}: {why}; "
                'leave it out, or use backend="inductor" where nothing is to be pruned'
            )
    return Settings(policy, inductor, autotune, kernels, region, observer=observer)


def _region(paths: Any) -> Region:
    if not isinstance(paths, (list, tuple)) or not all(isinstance(p, str) and p for p in paths):
        raise OptionError(
            f"nm.region = {shown(paths)}: write the paths of the modules that share code"
        )
    return Region(tuple(paths))


def _choice(options: dict[str, Any], name: str, default: Any, words: tuple[Any, ...]) -> Any:
    value = options.pop(name, default)
    if type(value) is not type(default) or value not in words:
        raise OptionError(f"{name} = {shown(value)}: write one of {', '.join(map(repr, words))}")
    return value
