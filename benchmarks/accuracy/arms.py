"""The arms: what is pruned, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.data import digest_of
from benchmarks.records import ROOT
from nmcompile import Policy

_EXAMPLES = ROOT / "examples" / "policies"
_OWN = Path(__file__).parent / "policies"


@dataclass(frozen=True)
class Pruning:
    """What an arm does.

    Attributes:
        meaning: the same in words.
        phases: from which share of the steps on which policy holds: a recipe's name, a file, or
            the share of the FLOPs for which ``nmcompile.tune`` is to choose one.
    """

    meaning: str
    phases: tuple[tuple[float, str | Path | float], ...]

    @property
    def tuned(self) -> bool:
        """Whether a policy is chosen by measurement."""
        return any(isinstance(policy, float) for _, policy in self.phases)

    @property
    def scheduled(self) -> bool:
        """Whether the policy changes during training."""
        return len(self.phases) > 1

    def schedule(self, steps: int, tune: Callable[[float], Path]) -> dict[int, str]:
        """The policies by the step at which each begins; ``tune`` gives the file for a budget."""
        return {
            round(share * steps): str(tune(policy) if isinstance(policy, float) else policy)
            for share, policy in self.phases
        }

    def digest(self) -> str:
        """Equal digests prune alike, wherever the policies' files lie."""
        return digest_of(*((share, _content(policy)) for share, policy in self.phases))


def _content(policy: str | Path | float) -> object:
    if isinstance(policy, float):
        return policy
    rules = Policy.resolve(policy).all_rules
    return [rule.model_dump(mode="json", by_alias=True, exclude_defaults=True) for rule in rules]


_FORWARD = "fprop: activation, MSE 2:4"
_BACKWARD = "dgrad and wgrad: neural gradient"


def _always(policy: str | Path | float, meaning: str) -> Pruning:
    return Pruning(meaning, ((0.0, policy),))


#: The arms. The first is what the others are compared with.
ARMS = {
    "dense": _always("dense", "nothing pruned"),
    "activations": _always("activations", f"{_FORWARD}; straight-through backward"),
    "activations-exact": _always(
        _EXAMPLES / "activations-exact.toml", f"{_FORWARD}; exact backward of the pruned product"
    ),
    "weights": _always(
        "weights",
        "fprop and dgrad: weight, transposable 2:4; wgrad: neural gradient, MVUE 2:4",
    ),
    "gradients-1:2": _always(_EXAMPLES / "gradients-1-2.toml", f"{_BACKWARD}, MVUE 1:2"),
    "gradients-2:4": _always("gradients", f"{_BACKWARD}, MVUE 2:4"),
    "mse-gradients": _always("mse-gradients", f"{_BACKWARD}, MSE 2:4 (biased)"),
    "mse-gradients-1:2": _always(_OWN / "mse-gradients-1-2.toml", f"{_BACKWARD}, MSE 1:2 (biased)"),
    "mse-wgrad-1:2": _always(
        _OWN / "mse-wgrad-1-2.toml", "wgrad alone: neural gradient, MSE 1:2 (biased)"
    ),
    "mse-head-dgrad-1:2": _always(
        _OWN / "mse-head-dgrad-1-2.toml",
        "the head's dgrad alone: neural gradient, MSE 1:2 (biased)",
    ),
    "mse-but-head-1:2": _always(
        _OWN / "mse-but-head-1-2.toml", "as `mse-gradients-1:2`, but the head stays dense"
    ),
    "full": _always("full", f"{_FORWARD}; {_BACKWARD}, MVUE 2:4"),
    "full-exact": _always("full-exact", "as `full`, with the exact backward of pruned products"),
    "full-but-first": _always(
        _EXAMPLES / "full-but-first.toml", "as `full`, but the first layer stays dense"
    ),
    "full-then-dense": Pruning(
        "as `full`, and dense for the last quarter of the steps", ((0.0, "full"), (0.75, "dense"))
    ),
    "tuned-50": _always(0.5, "the policy that `nmcompile.tune` chose for half of the FLOPs"),
    "tuned-50-then-dense": Pruning(
        "as `tuned-50`, and dense for the last quarter of the steps", ((0.0, 0.5), (0.75, "dense"))
    ),
    "dense-then-tuned-50": Pruning(
        "as `tuned-50`, but dense for the first quarter of the steps", ((0.0, "dense"), (0.25, 0.5))
    ),
    "tuned-75": _always(0.75, "the same for three quarters of the FLOPs"),
    "tuned-75-then-dense": Pruning(
        "as `tuned-75`, and dense for the last quarter of the steps",
        ((0.0, 0.75), (0.75, "dense")),
    ),
}
