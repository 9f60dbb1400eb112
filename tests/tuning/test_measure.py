"""What is measured is what pruning does: against autograd, and against exact expectations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nmcompile import functional
from nmcompile.dry_run import fresh
from nmcompile.gemm import OperandKind, Role
from nmcompile.tuning.measure import Moments, Sums
from nmcompile.tuning.products import Choice
from nmcompile.tuning.session import Batch, Session
from tests.tuning.nets import Blocks, Classifier, images, vectors

ACTIVATION = Choice(OperandKind.ACTIVATION, "2:4")
WEIGHT = Choice(OperandKind.WEIGHT, "2:4")
GRADIENT = Choice(OperandKind.GRADIENT, "1:2")


def measured(model: Callable[..., Tensor], batches: list[Batch], *choices: Choice) -> Session:
    """A session that has measured all batches."""
    session = Session(fresh(model), batches, choices, None)
    session.measure(None, lambda: None)
    return session


def moments(session: Session, choice: Choice, role: Role = Role.FPROP) -> dict[str, Moments]:
    """By the path of the module."""
    found = session.measured.sums.moments.items()
    return {slot.key.module: m for (slot, c), m in found if c == choice and slot.key.role is role}


class Grouped(nn.Module):
    """Layers whose backward is written in other ways: groups, no bias, a transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 12, 3, groups=2, stride=2)
        self.second = nn.ConvTranspose2d(12, 8, 2, bias=False)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.second(torch.tanh(self.first(x)))
        return F.cross_entropy(self.head(torch.tanh(x).mean((2, 3))), y)


def slopes(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, float]:
    """d loss / d t at 0 where the input of one layer is ``x + t (prune(x) - x)``, by autograd."""
    found = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            continue
        t = torch.zeros((), requires_grad=True)

        def changed(layer: nn.Module, args: tuple[Tensor], t: Tensor = t) -> tuple[Tensor]:
            x = args[0]
            groups = getattr(layer, "groups", 1)
            if x.dim() == 4:  # blocks lie in the channels of a group
                split = x.detach().unflatten(1, (groups, -1))
                masked = functional.prune(split, "2:4", dim=2).flatten(1, 2)
            else:
                masked = functional.prune(x.detach(), "2:4")
            return (x + t * (masked - x.detach()),)

        hook = layer.register_forward_pre_hook(changed)
        loss = model(*batch)
        hook.remove()
        (found[path],) = (g.item() for g in torch.autograd.grad(loss, [t]))
    return found


@pytest.mark.parametrize(
    ("net", "batches"), [(Classifier, images), (Blocks, vectors), (Grouped, images)]
)
def test_the_first_order_is_the_slope_of_the_loss(
    net: type[nn.Module], batches: Callable[[int], list[Batch]]
) -> None:
    model = net().eval()
    (batch,) = batches(1)
    session = Session(fresh(model), [batch], [ACTIVATION], None)
    session.measure(None, lambda: None)
    found = {path: m.first for path, m in moments(session, ACTIVATION).items()}
    wanted = slopes(model, tuple(batch))
    if net is Grouped:  # two channels in a group are no block of four
        wanted.pop("first")
    assert found.keys() == wanted.keys()
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-7)


def test_the_second_moment_is_that_of_the_rows() -> None:
    """Of a linear model with independent rows, whose loss is the mean over them."""
    layer = nn.Linear(8, 4)
    x, y = torch.randn(6, 8), torch.randint(4, (6,))
    session = measured(lambda x, y: F.cross_entropy(layer(x), y), [(x, y)], ACTIVATION, WEIGHT)
    result = layer(x).detach().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(result, y), [result])
    w = layer.weight.detach()
    changes = {
        ACTIVATION: (functional.prune(x, "2:4") - x) @ w.t(),
        WEIGHT: x @ (functional.prune(w, "2:4") - w).t(),
    }
    for choice, change in changes.items():
        (m,) = moments(session, choice).values()
        assert m.second == pytest.approx((g * change).sum(1).square().sum().item(), rel=1e-4)


def test_noise_is_the_variance_that_mvue_adds() -> None:
    """1:2 keeps one of a pair (a, b) as +-(|a| + |b|): the expectation is exact, by outcomes."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False))
    x, c = torch.randn(8, 4), torch.randn(8, 4)
    rounds = 150
    session = measured(lambda x, n: (net(x) * c).sum(), [(x, n) for n in range(rounds)], GRADIENT)

    def expected(dy: Tensor, other: Tensor) -> float:
        """E |noise other|^2 of ``dy [R, K]`` and ``other [K, C]``, blocks along K."""
        total = 0.0
        for pair in range(0, dy.shape[1], 2):
            a, b = dy[:, pair], dy[:, pair + 1]
            size = a.abs() + b.abs()
            for kept, (p, q) in enumerate(((a, b), (b, a))):
                rest = other[pair + kept], other[pair + 1 - kept]
                noise = (torch.copysign(size, p) - p)[:, None] * rest[0] - q[:, None] * rest[1]
                total += (p.abs() / size * noise.square().sum(1)).sum().item()
        return total

    dgrad = moments(session, GRADIENT, Role.DGRAD)
    wgrad = moments(session, GRADIENT, Role.WGRAD)
    handed_down, hidden = expected(c, net[1].weight.detach()), net[0](x).detach()
    last = next(m for path, m in wgrad.items() if path.endswith("1"))
    (only,) = dgrad.values()  # x has no gradient
    assert only.noise / rounds == pytest.approx(handed_down, rel=0.1)
    assert last.noise / rounds == pytest.approx(expected(c.t(), hidden), rel=0.1)


def test_pruned_where_asked_is_what_is_compiled() -> None:
    model = Blocks().eval()
    session = measured(model, vectors(1), ACTIVATION)
    keys = {slot.key: ACTIVATION for slot, _ in session.measured.sums.moments}
    assert len(keys) == 7
    options = {"policy": "activations"}
    compiled = torch.compile(fresh(model), backend="nm_sparse", options=options)
    wanted = compiled(*session.batches[0]).item()
    assert session.loss(0, keys).item() == pytest.approx(wanted, rel=1e-5)
    assert session.loss(0).item() != pytest.approx(wanted, rel=1e-3)


def test_both_gradients_of_a_convolution_can_be_pruned_alone() -> None:
    model = Classifier().eval()
    session = measured(model, images(2), GRADIENT)
    for slot, _ in session.measured.sums.moments:
        if slot.key.module != "conv":
            continue
        assert slot.key.role is Role.WGRAD  # images have no gradient
        loss = session.loss(0)
        dense = torch.autograd.grad(loss, list(model.parameters()))
        loss = session.loss(0)
        session.measured.applied = {slot.key: GRADIENT}
        pruned = torch.autograd.grad(loss, list(model.parameters()))
        differ = [not torch.equal(a, b) for a, b in zip(dense, pruned, strict=True)]
        names = [name for name, _ in model.named_parameters()]
        assert [n for n, d in zip(names, differ, strict=True) if d] == ["conv.weight"]


def test_sums_survive_a_file() -> None:
    sums = measured(Classifier(), images(2), ACTIVATION, GRADIENT).measured.sums
    again = Sums.of(sums.plain())
    assert again.moments == sums.moments
    assert again.calls == sums.calls
    assert again.energies == sums.energies
    assert list(again.signals) == list(sums.signals)


def test_a_checkpoint_changes_no_measurement() -> None:
    """What is computed once more in the backward is measured, and counted, once."""
    model = Blocks().eval()

    def checkpointed(x: Tensor, y: Tensor) -> Tensor:
        for block in model.blocks:
            up, down = block["up"], block["down"]
            inner = checkpoint(
                lambda x, up=up, down=down: down(F.gelu(up(x))), x, use_reentrant=False
            )
            x = x + inner
        return F.cross_entropy(model.head(x), y)

    batches = vectors(2)
    plain = measured(model, batches, ACTIVATION)
    again = measured(checkpointed, batches, ACTIVATION)
    assert sorted(again.measured.sums.calls.values()) == [2] * len(again.measured.sums.calls)
    wanted = sorted(m.first for m in moments(plain, ACTIVATION).values())
    found = sorted(m.first for m in moments(again, ACTIVATION).values())
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-7)


def test_a_graph_that_runs_twice_is_measured_twice() -> None:
    """Behind a graph break one graph serves two calls; the backward comes in the opposite order."""
    layer = nn.Linear(8, 8)

    def half(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return torch.tanh(layer(x))

    def model(x: Tensor, y: Tensor) -> Tensor:
        return (half(half(x)) - y).square().mean()

    x, y = torch.randn(6, 8), torch.randn(6, 8)
    session = measured(model, [(x, y)], ACTIVATION)
    total = sum(m.first for m in moments(session, ACTIVATION).values())
    t = torch.zeros((), requires_grad=True)

    def changed(layer: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        x = args[0]
        return (x + t * (functional.prune(x.detach(), "2:4") - x.detach()),)

    layer.register_forward_pre_hook(changed)
    (slope,) = torch.autograd.grad((torch.tanh(layer(torch.tanh(layer(x)))) - y).square().mean(), t)
    assert total == pytest.approx(slope.item(), rel=1e-4)
