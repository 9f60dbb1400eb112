"""What is compared: data, networks, how each is trained, and under which arms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.accuracy import images
from benchmarks.accuracy.data import Text
from benchmarks.accuracy.images import Images
from benchmarks.accuracy.models import GPT, ResNet, ViT
from benchmarks.accuracy.training import Setting


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

    def shown(self, row: Mapping[str, Any]) -> float | None:
        """The value of a row as it is printed; None where it has none."""
        value = row[self.column]
        return None if value is None else self.scale * value


def _accuracy(held_out: int) -> Metric:
    return Metric(
        "validation_accuracy",
        "accuracy (%)",
        "higher",
        100,
        2,
        1 / held_out,
        lambda _, share: share,
    )


_BITS = Metric(
    "bits_per_byte", "bits per byte", "lower", 1, 3, 0, lambda loss, _: loss / 0.6931471805599453
)


@dataclass(frozen=True)
class Study:
    """A data set, its networks with the arms of each, and its metric.

    Attributes:
        folder: whether ``--data`` names where the data lie.
    """

    name: str
    title: str
    networks: dict[str, Setting]
    arms: dict[str, tuple[str, ...]]
    metric: Metric
    folder: bool = False

    def setting(self, network: str, data: Path | None) -> Setting:
        """How a network is trained on the data in a folder; None: where they usually lie."""
        setting = self.networks[network]
        return replace(setting, load=partial(setting.load, folder=data)) if data else setting


def _resnet(data: Images, norm: bool) -> nn.Module:
    return ResNet(data.shape[0], norm)


def _vit(data: Images, rows: int, columns: int) -> nn.Module:
    return ViT(data.shape, (rows, data.shape[2] // columns))


def _gpt(data: Text) -> nn.Module:
    return GPT(context=data.context)


_digits = partial(images.digits, batch=32)
_fashion = partial(images.from_folder, batch=128, pool=2)
_text = partial(Text.load, batch=16, context=64)

_GRADIENTS = ("dense", "gradients-1:2", "gradients-2:4", "mse-gradients", "mse-gradients-1:2")
_WHERE = ("mse-wgrad-1:2", "mse-head-dgrad-1:2", "mse-but-head-1:2")
_PLAIN, _NORM = partial(_resnet, norm=False), partial(_resnet, norm=True)
_EPOCHS = 3 * (60_000 // 128)

STUDIES = {
    "digits": Study(
        "digits",
        "Handwritten digits",
        {
            "resnet-no-norm": Setting(_PLAIN, _digits, steps=200, rate=3e-3, probes=16),
            "resnet-batch-norm": Setting(_NORM, _digits, steps=200, rate=3e-3),
            "vit": Setting(partial(_vit, rows=2, columns=2), _digits, steps=300, rate=4e-3),
        },
        {
            "resnet-no-norm": (*_GRADIENTS, *_WHERE, "activations", "full"),
            "resnet-batch-norm": ("dense", "gradients-1:2", "mse-gradients-1:2", "full"),
            "vit": ("dense", "gradients-1:2", "mse-gradients-1:2", "full", "full-but-first"),
        },
        _accuracy(images.HELD_OUT),
    ),
    "fashion": Study(
        "fashion",
        "Images of clothes",
        {
            "resnet-no-norm": Setting(_PLAIN, _fashion, steps=_EPOCHS, rate=3e-3, probes=16),
            "resnet-batch-norm": Setting(_NORM, _fashion, steps=_EPOCHS, rate=3e-3, probes=16),
            "vit": Setting(
                partial(_vit, rows=2, columns=1), _fashion, steps=_EPOCHS, rate=3e-3, probes=16
            ),
        },
        {
            "resnet-no-norm": (
                *(*_GRADIENTS, *_WHERE),
                *("activations", "activations-exact", "weights", "full", "full-exact"),
                *("full-then-dense", "tuned-50", "tuned-75"),
            ),
            "resnet-batch-norm": (*_GRADIENTS, "activations", "weights", "full"),
            "vit": (*_GRADIENTS, "activations", "weights", "full", "full-but-first", "tuned-50"),
        },
        _accuracy(10_000),
        folder=True,
    ),
    "text": Study(
        "text",
        "Python source",
        {"gpt": Setting(_gpt, _text, steps=1500, rate=6e-3)},
        {
            "gpt": (
                *_GRADIENTS,
                *("activations", "activations-exact", "weights", "full", "full-exact"),
                *("full-then-dense", "tuned-50", "tuned-50-then-dense", "dense-then-tuned-50"),
                *("tuned-75", "tuned-75-then-dense"),
            )
        },
        _BITS,
    ),
}
