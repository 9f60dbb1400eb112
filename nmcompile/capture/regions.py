"""Several modules that share one compiled graph (regional compilation), and rules on their paths.

Repeated blocks that are compiled one by one reuse each other's code, and inside a block nothing
says which one it is. A region lists the paths of the modules that share code, so that rules see
full paths; a rule that would treat them differently is refused, never applied as for the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from torch import nn

from nmcompile._dynamo import Caller
from nmcompile.errors import PolicyError, nearest
from nmcompile.policy import Policy
from nmcompile.policy.paths import is_inside, named_modules, own_names, without_wrappers

#: A component of a pattern that is a number: "layers.3", "layers.[0-3]", r"re:layers\.3\..*".
_INDEX = re.compile(r"(?:^|re:|\.)\(?(?:\d+|\[[\d-]+\])\)?(?=\\?\.|\||\*|$)")


#: What to do about rules that treat the modules of a region differently.
_COMPILE_EACH = (
    'let nmcompile.compile(model, policy, each="...") compile the blocks, which gives those that '
    "differ code of their own"
)
_NO_REGION = (
    "take torch.compiler.nested_compile_region away, which gives each of them a graph of its own"
)


@dataclass(frozen=True)
class Region:
    """The modules that share one compiled graph; without paths, the compiled module is the root.

    ``prefix`` is what a wrapper adds to the paths inside of it, and what is not shown. ``advice``
    says how to keep apart what a policy treats differently. ``own`` are paths inside that look as
    if a wrapper had added to them (``policy.paths``).
    """

    paths: tuple[str, ...] = ()
    prefix: str = ""
    advice: str = _COMPILE_EACH
    own: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """All paths as one: ``layers.{0..11}``."""
        return _braced(self.paths) if self.paths else ""

    def shown(self, inside: str) -> str:
        """The path of a module inside of the region, for all of its modules at once."""
        if self.prefix and f"{inside}.".startswith(f"{self.prefix}."):
            inside = inside[len(self.prefix) + 1 :]
        return ".".join(filter(None, (self.name, without_wrappers(inside, self.own))))

    def each(self, shown: str) -> tuple[str, ...]:
        """What a shown path stands for: one path in every module of the region."""
        if not self.paths:
            return (shown,)
        return tuple(path + shown.removeprefix(self.name) for path in self.paths)


def called_region(outer: Region, callers: Sequence[str], inside: Iterable[str]) -> Region | None:
    """The region of a graph that several modules of another one call; None where nothing tells.

    Args:
        outer: the region of that other graph.
        callers: the modules of the calls.
        inside: the paths of the graph's nodes in order, as one of the calls was traced. A node may
            carry the path of another call, but what lies below a path is of the traced one alone.
    """
    if len(callers) < 2:
        return outer
    # No module is inside of one of its own class and parameters: such a call has lost its place
    # (Dynamo forgets it behind a custom Function).
    callers = [c for c in callers if not any(is_inside(other, c) for other in callers)]
    paths = [path for path in inside if path]
    below = [path for path in paths if path not in callers]
    traced = [c for c in paths if c in callers] or callers
    under = [c for c in traced if all(path.startswith(f"{c}.") for path in below)]
    under = under or [c for c in callers if all(path.startswith(f"{c}.") for path in below)]
    if not under:
        return None
    each = [path for caller in callers for path in outer.each(outer.shown(caller))]
    head = f"{under[0]}."
    own = tuple(path.removeprefix(head) for path in outer.own if path.startswith(head))
    return Region(tuple(sorted(each, key=_natural)), under[0], _NO_REGION, own)


def _natural(path: str) -> list[tuple[int, str]]:
    words = path.split(".")
    return [(int(word), "") if _NUMBER.fullmatch(word) else (-1, word) for word in words]


def region_of(caller: Caller) -> Region:
    """The modules that may share the graph in hand, where it is of a part of the whole model.

    That is what a graph break inside of a loop, or a hook that cannot be traced (FSDP2), leads to.
    Modules of one class with equal parameters reuse each other's code.
    """
    whole, roots = caller.whole, caller.roots
    own = tuple(name for root in roots for name in own_names(root))
    if whole is None or len(roots) != 1 or roots[0] is whole:
        return Region(prefix=caller.prefix, own=own)
    like = _kind(roots[0])
    alike = [p for _, p, m in named_modules(whole) if m is roots[0] or _kind(m) == like]
    known = any(m is roots[0] for m in whole.modules())
    return Region(tuple(alike) if known else (), caller.prefix, own=own)


def _kind(module: nn.Module) -> object:
    sizes = [(n, p.shape, p.dtype, p.requires_grad) for n, p in module.named_parameters()]
    return type(module), module.training, sizes


def check_indices(policy: Policy, whole: nn.Module | None) -> None:
    """Refuse a rule on a layer's index where the compiled module has no numbered layers like it.

    Args:
        policy: its own rules are looked at.
        whole: the module that is compiled, None if unknown.

    Raises:
        PolicyError: names the rule, the compiled module, and what to write instead.
    """
    if whole is None:
        return
    known = [path for _, path, _ in named_modules(whole) if path]
    for rule in policy.rules:
        if rule.module is None or not _INDEX.search(rule.module):
            continue
        numbers = re.findall(r"\d+", rule.module)
        # A rule for the 30th layer may come with a file for larger models: that one just matches
        # nothing here, and the report says so.
        if not any(rule.names_module(p) for path in known for p in _renumbered(path, numbers)):
            raise PolicyError(
                f"{rule.label}: module = {rule.module!r} names a layer by its index, but what is "
                f"compiled here is {type(whole).__name__}, which has no such module "
                f"({nearest(rule.module, known)}). Blocks that are compiled one by one share one "
                "graph and do not know their index: compile the whole model, or let "
                'nmcompile.compile(model, policy, each="layers.*") compile its blocks'
            )


def _renumbered(path: str, numbers: Iterable[str]) -> Iterator[str]:
    """The path, and the same with another number in the place of each number of its own."""
    words = path.split(".")
    yield path
    for i, word in enumerate(words):
        if word.isdigit():
            yield from (".".join((*words[:i], n, *words[i + 1 :])) for n in numbers)


def _braced(paths: tuple[str, ...]) -> str:
    """``layers.0, layers.1`` as ``layers.{0..1}``: what the paths share, and the rest in braces."""
    split = [path.split(".") for path in paths]
    head = _shared(split)
    tail = _shared([words[len(head) :][::-1] for words in split])[::-1]
    rest = [".".join(words[len(head) : len(words) - len(tail)]) for words in split]
    differing = ["{" + ",".join(_ranges(rest)) + "}"] if any(rest) else []
    return ".".join((*head, *differing, *tail))


def _shared(lists: list[list[str]]) -> list[str]:
    """What all lists begin with."""
    same = takewhile(lambda words: len(set(words)) == 1, zip(*lists, strict=False))
    return [words[0] for words in same]


_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


def _ranges(words: list[str]) -> list[str]:
    """``0 1 2 5`` as ``0..2 5``; words that are no numbers stay as they are."""
    if not all(_NUMBER.fullmatch(word) for word in words):
        return words
    runs: list[list[int]] = []
    for number in sorted(map(int, words)):
        if runs and runs[-1][-1] + 1 == number:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [f"{r[0]}..{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs]
