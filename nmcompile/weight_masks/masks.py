"""``nmcompile.Masks``: the kept weight masks of a model, to look at and for a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from nmcompile._dynamo import inside_wrappers
from nmcompile.errors import ArgumentError, FormatError, MaskError, shown
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.policy.paths import without_wrappers
from nmcompile.weight_masks import table
from nmcompile.weight_masks.stored_mask import StoredMask
from nmcompile.weight_masks.table import Kept

_STATE_VERSION = 1


class Masks:
    """The masks of a model's weights that a policy keeps for many steps (``refresh``, ``decay``).

    They live beside the model, whose own ``state_dict()`` stays as it is. Each weight has one,
    whatever reads it: tied layers, training and evaluation, several compiled versions.

    Args:
        model: any module; what ``torch.compile`` or ``DistributedDataParallel`` made of it is the
            same. It may be compiled and called before or after.

    Raises:
        ArgumentError: ``model`` is no module.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"masks are of the weights of a module, not of {shown(model)}")
        self._model = inside_wrappers(model)

    def _weights(self) -> dict[str, Tensor]:
        named = self._model.named_parameters()
        return {without_wrappers(name): p for name, p in named}

    def _kept(self) -> Iterator[tuple[str, StoredMask, Kept]]:
        for name, weight in self._weights().items():
            for stored, kept in table.masks_of(weight).items():
                if not kept.stale:
                    yield name, stored, kept

    def tensors(self) -> dict[str, Tensor]:
        """The masks by the names of their weights: bool, in the shape of each; True is kept.

        The tensors are the ones that the next call reads. A weight that has several (the rules of
        fprop and dgrad differ) is listed under the name with what each is in brackets behind it.
        """
        return {name: kept.mask for name, kept in self._named().items()}

    def flip_rates(self) -> dict[str, float]:
        """The share of each mask that changed when it was last taken anew, by name.

        A mask that was taken once is left out. Hu et al., "Accelerating transformer pre-training
        with 2:4 sparsity", ICML 2024 (arXiv 2404.01847), choose the decay by this rate.
        """
        return {
            name: kept.flipped.item() / max(1, kept.mask.numel())
            for name, kept in self._named().items()
            if kept.flipped is not None
        }

    def _named(self) -> dict[str, Kept]:
        found = list(self._kept())
        names = [name for name, _, _ in found]
        return {
            name if names.count(name) == 1 else f"{name} ({stored})": kept
            for name, stored, kept in found
        }

    def refresh(self) -> None:
        """Take all masks anew at the next call, as after loading other weights into the model."""
        for _, _, kept in self._kept():
            kept.loaded = False
        table.forget(self._weights().values())

    def state_dict(self) -> dict[str, Any]:
        """The masks and how many steps each has been counted for: tensors and plain values."""
        masks: dict[str, list[dict[str, Any]]] = {}
        for name, stored, kept in self._kept():
            entry = {
                "format": str(stored.format),
                "method": str(stored.method),
                "dims": list(stored.dims),
                "groups": stored.groups,
                "steps": kept.steps,
                "mask": kept.mask.clone(),
            }
            masks.setdefault(name, []).append(entry)
        return {"version": _STATE_VERSION, "masks": masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the masks that ``state_dict`` gave.

        A mask that the state does not have is taken at the next call. Before or after the model's
        own weights are loaded, and before or after it is compiled, makes no difference.

        Raises:
            MaskError: it is no such state, or of another model; nothing is loaded then.
        """
        read = list(self._read(state))
        self.refresh()
        for weight, stored, mask, steps in read:
            known = table.masks_of(weight).get(stored)
            if known is None:
                table.put(weight, stored, known := Kept(stored.place(weight)))
            known.mask.copy_(mask)
            known.steps, known.loaded, known.stale = steps, True, False

    def _read(self, state: object) -> Iterator[tuple[Tensor, StoredMask, Tensor, int]]:
        if not isinstance(state, Mapping) or not isinstance(state.get("masks"), Mapping):
            raise MaskError(
                f"{shown(state)} is not the state of masks: give what Masks.state_dict() returned"
            )
        if state.get("version") != _STATE_VERSION:
            raise MaskError(
                f"the state is of version {shown(state.get('version'))}, and this nmcompile reads "
                f"version {_STATE_VERSION}"
            )
        weights = self._weights()
        for name, entries in state["masks"].items():
            if name not in weights:
                raise MaskError(
                    f"the state has a mask of {shown(name)}, and this "
                    f"{type(self._model).__name__} has no such weight: give the masks of this model"
                )
            for entry in entries:
                yield weights[name], *_entry(name, entry, weights[name])

    def __repr__(self) -> str:
        found = list(self._kept())
        kept = sum(k.mask.numel() for _, _, k in found)
        return f"Masks of {type(self._model).__name__}: {len(found)} kept, {kept:,} elements"


def _entry(name: str, entry: Any, weight: Tensor) -> tuple[StoredMask, Tensor, int]:
    try:
        form, method = NMFormat.parse(entry["format"]), Method(entry["method"])
        stored = StoredMask(form, method, tuple(map(int, entry["dims"])), int(entry["groups"]))
        mask, steps = entry["mask"], int(entry["steps"])
        same = tuple(mask.shape) == tuple(weight.shape)
    except (KeyError, TypeError, ValueError, AttributeError, FormatError) as error:
        raise MaskError(
            f"the state of the mask of {name} cannot be read ({type(error).__name__}: {error}): "
            "give what Masks.state_dict() returned"
        ) from error
    if not same:
        raise MaskError(
            f"the mask of {name} is {list(mask.shape)} in the state, and the weight is "
            f"{list(weight.shape)}: give the masks of this model"
        )
    return stored, mask, steps
