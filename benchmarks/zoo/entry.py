"""One architecture of the zoo: a tiny model with random weights, a fixed batch and a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


def own_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that the model itself computes from its labels."""
    loss: Tensor = model(**batch).loss
    return loss


@dataclass(frozen=True)
class Entry:
    """``make`` builds the model and one batch after the seed has been set.

    ``note`` says what is particular: an option that is not the library's default, or what of the
    model no policy reaches. ``eager_only`` are modules that Dynamo cannot trace and runs as they
    are: no backend sees their products. ``fused`` are those whose forward computes gradients, so
    that what runs in one direction is a product of the other. ``traced_again`` are those whose
    body PyTorch traces by itself, so that nothing tells the modules inside of it apart.
    ``untaken`` are modules of a branch that the batch does not take, ``iterations`` how often a
    loop over data runs. ``dynamo`` are settings of ``torch._dynamo.config``.
    """

    name: str
    family: str
    make: Callable[[], tuple[nn.Module, Batch]]
    loss: Callable[[nn.Module, Batch], Tensor] = own_loss
    note: str = ""
    eager_only: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()
    traced_again: tuple[str, ...] = ()
    untaken: tuple[str, ...] = ()
    iterations: int = 1
    dynamo: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> tuple[nn.Module, Batch]:
        """The model in training mode and its batch: the same weights and data at each call."""
        torch.manual_seed(0)
        model, batch = self.make()
        return model.train(), batch


def without_dropout(config: Any) -> Any:
    """The configuration, and those inside it, with every dropout probability set to zero."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            without_dropout(value)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


#: Of classifiers. Where it is missing, transformers writes it into the configuration in the first
#: step, and the second one is compiled again.
PROBLEM = {"problem_type": "single_label_classification"}


def tokens(vocabulary: int = 48, length: int = 16, batch: int = 2) -> Tensor:
    """Random token ids, above the small ids that configurations reserve."""
    return torch.randint(8, vocabulary, (batch, length))


def transformer(
    name: str,
    family: str,
    kind: str,
    config: Mapping[str, Any],
    batch: Callable[[], Batch],
    note: str = "",
    eager_only: tuple[str, ...] = (),
    experts: str = "",
) -> Entry:
    """An entry of ``transformers``.

    Args:
        name: of the entry.
        family: of the entry.
        kind: the model class; the configuration's class belongs to it.
        config: arguments of the configuration.
        batch: makes the batch.
        note: of the entry.
        eager_only: of the entry.
        experts: how a mixture of experts runs them; the library's default if empty.
    """

    def make() -> tuple[nn.Module, Batch]:
        import transformers

        cls = getattr(transformers, kind)
        model = cls(without_dropout(cls.config_class(**config)))
        if experts:
            model.set_experts_implementation(experts)
        return model, batch()

    return Entry(name, family, make, note=note, eager_only=eager_only)
