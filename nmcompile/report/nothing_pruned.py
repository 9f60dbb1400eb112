"""Warn when a policy pruned nothing in a whole model, or could not: nothing of it was compiled."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

from nmcompile.errors import NMWarning, nearest
from nmcompile.policy import Policy, Rule
from nmcompile.reason import Code, Reason
from nmcompile.report.report import GraphReport, Report


def warn_if_nothing_pruned(report: Report, policy: Policy) -> None:
    """One warning for a model without products, or with products that the policy leaves alone.

    Silent for a policy that asks for nothing, and where the products that it is for do not exist
    yet: gradients of a model in evaluation.
    """
    pruning = [rule for rule in policy.all_rules if not rule.dense]
    sites = report.sites
    if not pruning or any(site.pruned for site in sites):
        return
    if not sites:
        reasons = Counter(f"{s.target}: {s.reason}" for s in report.skipped)
        skipped = "".join(f"; skipped {count} x {what}" for what, count in reasons.items())
        _warn(f"nothing is pruned: the model has no matrix product and no convolution{skipped}")
        return
    sites = tuple(s for s in sites if s.guess is None)  # of those there is a warning already
    rules = [rule for rule in pruning if {s.role for s in sites} & set(rule.roles)]
    declined = any(site.has(Code.DECLINED) for site in sites)  # has its own warning
    if not rules or declined:
        return
    misses = [miss for rule in rules if (miss := _miss(rule, report))]
    if misses:
        _warn(f"nothing is pruned of {len(sites)} products: {'; '.join(misses)}")
        return
    reasons = Counter(site.reason for site in sites)
    most = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
    hint = _PLAIN if all(site.has(Code.MATMUL_NOT_NAMED) for site in sites) else ""
    _warn(f"nothing is pruned of {len(sites)} products: {most}{hint}")


#: What a model looks like whose weights are plain tensors.
_PLAIN = (
    ". Weights must be parameters or buffers: plain tensors (as torch.func.functional_call and "
    "stack_module_state may hand in) are taken for activations"
)


def no_graph_arrived(name: str, unsupported: Sequence[str]) -> Reason:
    """Of a call that came to its end without a graph; ``unsupported``: Dynamo's explanations."""
    return Reason(
        Code.NO_GRAPH,
        f"nothing of {name} was compiled: all of it ran eagerly, and dense{_said(unsupported)}. "
        "Compile the parts that can be, on their own: nmcompile.compile(model, policy, each=...)",
    )


def call_failed(name: str, error: BaseException) -> Reason:
    """Of a call that raised before a graph of it arrived."""
    said = (str(error).splitlines() or [""])[0]
    return Reason(
        Code.FAILED, f"nothing of {name} was compiled: {type(error).__name__} was raised: {said}"
    )


def eager_backward(reports: Sequence[GraphReport]) -> Reason | None:
    """Of a backward that compiled autograd captured; None if it multiplies nothing.

    It holds the backwards of graphs that are reported as well, so that nothing can be counted.
    """
    if not any(graph.sites for graph in reports):
        return None
    return Reason(
        Code.DENSE_FRAME,
        "compiled autograd: the backward of what ran eagerly is compiled with the backwards of the "
        "graphs, and is dense, since nothing tells its gradients from activations",
    )


def some_ran_eagerly(unsupported: Sequence[str]) -> Reason:
    """Of a call of which some products are in no graph."""
    return Reason(Code.SOME_EAGER, f"not all of it can be compiled{_said(unsupported)}")


def backward_is_apart(graphs: Sequence[GraphReport]) -> Reason | None:
    """Of a call in which a custom Function ran by itself: its backward is no part of the graphs."""
    guesses = [site.guess for graph in graphs for site in graph.sites if site.guess is not None]
    if not any(guess.code is Code.IN_FUNCTION for guess in guesses):
        return None
    return Reason(
        Code.SOME_EAGER,
        "what the backward of a custom Function multiplies that Dynamo did not trace together with "
        "the model is not counted: it runs inside of the autograd engine, dense",
    )


def _said(unsupported: Sequence[str]) -> str:
    """What Dynamo says, as the end of a sentence."""
    different = list(dict.fromkeys(unsupported))
    return "".join(f"; torch.compile says: {text}" for text in different[:_MOST])


def limit_is_reached(function: str, limit: int) -> Reason:
    """Of a function of which there is to be one more version than Dynamo makes."""
    return Reason(
        Code.RECOMPILE_LIMIT,
        f"{function} has been compiled {limit} times for different inputs, and where it would be "
        "once more it runs eagerly, and dense: mark sizes that vary with "
        "torch._dynamo.mark_dynamic, compile with dynamic=True, or raise "
        'torch._dynamo.config.recompile_limit (TORCH_LOGS="recompiles" shows why it is compiled)',
    )


def warn_of(reason: Reason, policy: Policy) -> None:
    """Warn of what keeps a policy from pruning; silent for a policy that is dense."""
    if any(not rule.dense for rule in policy.all_rules):
        _warn(reason.text)


#: So many of Dynamo's explanations are quoted.
_MOST = 3


def _miss(rule: Rule, report: Report) -> str | None:
    """What the rule looks for and does not find."""
    paths = {site.module for site in report.sites}
    classes = {site.module_class for site in report.sites}
    if rule.module is not None and not any(map(rule.names_module, paths)):
        hint = nearest(rule.module, paths)
        return f"{rule.label}: module = {rule.module!r} matches no path ({hint})"
    if rule.class_ is not None and not any(map(rule.names_class, classes)):
        hint = nearest(rule.class_, classes)
        return f"{rule.label}: class = {rule.class_!r} matches no class ({hint})"
    return None


def _warn(message: str) -> None:
    warnings.warn(message, NMWarning, stacklevel=2)
