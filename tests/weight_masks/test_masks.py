"""``nmcompile.Masks``: what it shows, its state, and what is no state of it."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from nmcompile import ArgumentError, MaskError, Masks
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.policy.rule import MaskLife
from nmcompile.weight_masks import table
from nmcompile.weight_masks.stored_mask import StoredMask

ROWS = StoredMask(NMFormat(2, 4), Method.MSE, (1,))
COLUMNS = StoredMask(NMFormat(2, 4), Method.MSE, (0,))
LIFE = MaskLife(2, 0.0)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))


def read(module: nn.Module, *stored: StoredMask) -> None:
    """What a forward of a compiled model does."""
    for layer in module.children():
        for one in stored or (ROWS,):
            table.mask_for(layer.weight, one, LIFE)


def test_nothing_is_kept_before_a_call() -> None:
    masks = Masks(model())
    assert masks.tensors() == masks.flip_rates() == masks.state_dict()["masks"] == {}


def test_the_masks_of_a_model_by_name() -> None:
    net = model()
    masks = Masks(net)
    read(net)
    assert set(masks.tensors()) == {"0.weight", "1.weight"}
    assert torch.equal(masks.tensors()["0.weight"], ROWS.take(net[0].weight))
    assert repr(masks) == "Masks of Sequential: 2 kept, 96 elements"
    assert masks.flip_rates() == {}
    read(net, COLUMNS)
    assert set(masks.tensors()) == {
        f"{i}.weight ({stored})" for i in range(2) for stored in (ROWS, COLUMNS)
    }


def test_wrappers_change_no_names() -> None:
    net = model()
    read(net)
    compiled: Any = torch.compile(net, backend="eager")
    assert set(Masks(compiled).tensors()) == {"0.weight", "1.weight"}


def test_the_flip_rate_is_the_share_that_changed() -> None:
    net = nn.Sequential(nn.Linear(8, 4, bias=False))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    read(net)
    before = Masks(net).tensors()["0.weight"].clone()
    net[0].weight.grad = torch.randn(4, 8)
    for _ in range(2):
        read(net)
        optimizer.step()
    flipped = (before != Masks(net).tensors()["0.weight"]).float().mean().item()
    assert Masks(net).flip_rates() == {"0.weight": flipped}
    assert flipped > 0


def test_refresh_takes_all_masks_anew() -> None:
    net = model()
    read(net)
    masks = Masks(net)
    masks.load_state_dict(masks.state_dict())  # which would hold
    masks.refresh()
    assert masks.tensors() == {}
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(8, 8))
    read(net)
    assert torch.equal(masks.tensors()["0.weight"], ROWS.take(net[0].weight))


def test_a_state_is_read_by_a_model_that_was_never_called() -> None:
    net, other = model(), model()
    read(net, ROWS, COLUMNS)
    table.masks_of(net[0].weight)[ROWS].steps = 5
    file = io.BytesIO()
    torch.save(Masks(net).state_dict(), file)
    file.seek(0)
    Masks(other).load_state_dict(torch.load(file, weights_only=True))
    assert table.masks_of(other[0].weight)[ROWS].steps == 5
    read(other, ROWS, COLUMNS)
    for name, mask in Masks(net).tensors().items():
        assert torch.equal(Masks(other).tensors()[name], mask)


def test_a_loaded_mask_holds_although_a_phase_begins() -> None:
    net, other = model(), model()
    read(net)
    Masks(other).load_state_dict(Masks(net).state_dict())
    table.forget(other.parameters())
    read(other)
    assert torch.equal(Masks(other).tensors()["0.weight"], Masks(net).tensors()["0.weight"])


def broken(**changes: Any) -> dict[str, Any]:
    net = nn.Sequential(nn.Linear(8, 4))
    read(net)
    state = Masks(net).state_dict()
    state["masks"]["0.weight"][0] |= changes
    return state


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (3, "3 is not the state of masks: give what Masks.state_dict() returned"),
        ({"step": 3}, "is not the state of masks"),
        ({"version": 2, "masks": {}}, "the state is of version 2, and this nmcompile reads"),
        ({"version": 1, "masks": {"up.weight": []}}, "a mask of 'up.weight', and this Sequential"),
        (broken(format="5:4"), "the state of the mask of 0.weight cannot be read (FormatError"),
        (broken(mask=None), "the state of the mask of 0.weight cannot be read (AttributeError"),
        (broken(mask=torch.ones(2, 2)), "0.weight is [2, 2] in the state, and the weight is [4, 8"),
    ],
)
def test_what_is_no_state(state: Any, words: str) -> None:
    net = nn.Sequential(nn.Linear(8, 4))
    read(net)
    before = Masks(net).tensors()
    with pytest.raises(MaskError) as caught:
        Masks(net).load_state_dict(state)
    assert words in str(caught.value)
    assert set(Masks(net).tensors()) == set(before)


def test_a_mask_is_of_a_module() -> None:
    with pytest.raises(ArgumentError, match="masks are of the weights of a module, not of 3"):
        Masks(3)  # type: ignore[arg-type]
