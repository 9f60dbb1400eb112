"""What is compared: the arms, the networks and how each is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from benchmarks.accuracy.data import HELD_OUT, Digits, Text
from benchmarks.accuracy.models import GPT, ResNet, ViT
from benchmarks.accuracy.training import Setting
from benchmarks.records import ROOT

_POLICIES = ROOT / "examples" / "policies"


class Pruning(NamedTuple):
    """A policy (a recipe's name or a file) and what it does, in words."""

    policy: str
    meaning: str


_FORWARD = "fprop: activation, MSE 2:4"
_BACKWARD = "dgrad and wgrad: neural gradient"

#: The arms. The first is what the others are compared with.
ARMS = {
    "dense": Pruning("dense", "nothing pruned"),
    "activations": Pruning("activations", f"{_FORWARD}; straight-through backward"),
    "activations-exact": Pruning(
        str(_POLICIES / "activations-exact.toml"),
        f"{_FORWARD}; exact backward of the pruned product",
    ),
    "gradients-1:2": Pruning(str(_POLICIES / "gradients-1-2.toml"), f"{_BACKWARD}, MVUE 1:2"),
    "gradients-2:4": Pruning("gradients", f"{_BACKWARD}, MVUE 2:4"),
    "mse-gradients": Pruning("mse-gradients", f"{_BACKWARD}, MSE 2:4 (biased)"),
    "full": Pruning("full", f"{_FORWARD}; {_BACKWARD}, MVUE 2:4"),
    "full-but-first": Pruning(
        str(_POLICIES / "full-but-first.toml"), "as `full`, but the first layer stays dense"
    ),
}


@dataclass(frozen=True)
class Metric:
    """What a study reports of a validation beside its loss.

    Attributes:
        column: its name in the CSV.
        label: its name in tables and plots.
        better: "higher" or "lower".
        scale, digits: how it is printed.
        step: the smallest difference that the validation set can show, such as one image.
        of: computes it from (loss in nats, share of correct predictions).
    """

    column: str
    label: str
    better: str
    scale: float
    digits: int
    step: float
    of: Callable[[float, float], float]


def _accuracy(loss: float, accuracy: float) -> float:
    return accuracy


def _bits(loss: float, accuracy: float) -> float:
    return loss / 0.6931471805599453


@dataclass(frozen=True)
class Study:
    """A data set, its networks, the arms that make sense for them, and its metric."""

    name: str
    title: str
    data: str
    networks: dict[str, Setting]
    metric: Metric
    arms: tuple[str, ...] = tuple(ARMS)


_digits = partial(Digits.load, batch=32)

STUDIES = {
    "digits": Study(
        "digits",
        "Handwritten digits",
        f"scikit-learn's digits: 8x8 pixels, 1257 images to train on and {HELD_OUT} held "
        "out (a fixed stratified split), batches of 32",
        {
            "resnet": Setting(ResNet, _digits, steps=200, rate=3e-3),
            "vit": Setting(ViT, _digits, steps=300, rate=4e-3),
        },
        Metric("validation_accuracy", "accuracy (%)", "higher", 100, 2, 1 / HELD_OUT, _accuracy),
    ),
    "text": Study(
        "text",
        "Python source",
        "bytes of Python's standard library: about 3 MB, one file in eight held out whole, "
        "batches of 16 windows of 64 bytes",
        {
            "gpt": Setting(GPT, partial(Text.load, batch=16, context=64), steps=500, rate=6e-3),
        },
        Metric("bits_per_byte", "bits per byte", "lower", 1, 3, 0, _bits),
        # Bytes are looked up in a table: there is no first product to except.
        arms=tuple(arm for arm in ARMS if arm != "full-but-first"),
    ),
}
