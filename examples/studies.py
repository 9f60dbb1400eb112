"""What is compared: the arms, the networks and how each is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from examples.data import Digits, Text
from examples.models import GPT, ResNet, ViT
from examples.training import Setting

_POLICIES = Path(__file__).with_name("policies")

#: Name of an arm -> its policy: a recipe's name or a file. The first is what others are compared
#: with. No arm makes an exception for any layer, the first and the last one included.
ARMS = {
    "dense": "dense",
    "activations": "activations",
    "activations-exact": str(_POLICIES / "activations-exact.toml"),
    "gradients-1:2": str(_POLICIES / "gradients-1-2.toml"),
    "gradients-2:4": "gradients",
    "mse-gradients": "mse-gradients",
    "full": "full",
}

MEANING = {
    "dense": "nothing pruned",
    "activations": "fprop: activation, MSE 2:4; straight-through backward",
    "activations-exact": "fprop: activation, MSE 2:4; exact backward of the pruned product",
    "gradients-1:2": "dgrad and wgrad: neural gradient, MVUE 1:2",
    "gradients-2:4": "dgrad and wgrad: neural gradient, MVUE 2:4",
    "mse-gradients": "dgrad and wgrad: neural gradient, MSE 2:4 (biased)",
    "full": "fprop: activation, MSE 2:4; dgrad and wgrad: neural gradient, MVUE 2:4",
}


@dataclass(frozen=True)
class Metric:
    """What a study reports of a validation beside its loss.

    Attributes:
        column: its name in the CSV.
        label: its name in tables and plots.
        better: "higher" or "lower".
        scale, digits: how it is printed.
        of: computes it from (loss in nats, share of correct predictions).
    """

    column: str
    label: str
    better: str
    scale: float
    digits: int
    of: Callable[[float, float], float]


def _accuracy(loss: float, accuracy: float) -> float:
    return accuracy


def _bits(loss: float, accuracy: float) -> float:
    return loss / 0.6931471805599453


@dataclass(frozen=True)
class Study:
    """A data set, its networks and its metric."""

    name: str
    title: str
    data: str
    networks: dict[str, Setting]
    metric: Metric


_digits = partial(Digits.load, batch=32)

STUDIES = {
    "digits": Study(
        "digits",
        "Handwritten digits",
        "scikit-learn's digits: 8x8 pixels, 1257 images to train on and 540 held out (a fixed "
        "stratified split), batches of 32",
        {
            "resnet": Setting(ResNet, _digits, steps=200, rate=3e-3),
            "vit": Setting(ViT, _digits, steps=300, rate=4e-3),
        },
        Metric("validation_accuracy", "accuracy (%)", "higher", 100, 2, _accuracy),
    ),
    "text": Study(
        "text",
        "Python source",
        "bytes of Python's standard library: about 3 MB, one file in eight held out whole, "
        "batches of 16 windows of 128 bytes",
        {
            "gpt": Setting(GPT, partial(Text.load, batch=16, context=128), steps=400, rate=3e-3),
        },
        Metric("bits_per_byte", "bits per byte", "lower", 1, 3, _bits),
    ),
}
