"""What one rank does: ``torchrun -m tests.distributed.worker SCENARIO FOLDER``."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import nmcompile
from nmcompile import Policy, Rule, _torch

#: Deterministic masks: what several processes compute can be compared with what one does.
MSE = Policy(
    rules=[
        Rule(role="fprop", prune="activation", format="2:4"),
        Rule(role=("dgrad", "wgrad"), prune="gradient", format="2:4", method="mse"),
    ]
)
KEPT = Policy(
    refresh=2,
    decay=0.1,
    rules=[Rule(prune="weight", format="2:4", method="transposable")],
)
FIRST_DENSE = Policy(rules=[Rule(module="layers.0.*", dense=True)], extends="full")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def gradients(model: nn.Module, x: Tensor, seed: int = 1) -> dict[str, Any]:
    """Gradients of one step as nested lists, whole tensors, under the names of ``Net``."""
    torch.manual_seed(seed)
    model.zero_grad()
    torch._dynamo.reset()  # else the many versions of one block reach Dynamo's limit
    model(x).square().mean().backward()
    found = {}
    for name, p in model.named_parameters():
        grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        assert grad is not None
        found[name.removeprefix("_orig_mod.").removeprefix("module.")] = grad.tolist()
    return found


def data(part: int, parts: int = 2) -> Tensor:
    whole = torch.randn(8 * parts, 16, generator=torch.Generator().manual_seed(2))
    return whole.chunk(parts)[part]


def tensor_parallel(model: Net, mesh: DeviceMesh) -> Net:
    for layer in model.layers:
        parallelize_module(layer, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


def ddp() -> dict[str, Any]:
    """The mean of the ranks' gradients; other masks on each rank for equal data and seeds."""
    rank = dist.get_rank()
    alone = nmcompile.compile(net(), MSE)
    inside = DistributedDataParallel(nmcompile.compile(net(), MSE))
    outside = torch.compile(
        DistributedDataParallel(net()), backend="nm_sparse", options={"policy": MSE}
    )
    result = {
        "alone": gradients(alone, data(rank)),
        "inside": gradients(inside, data(rank)),
        "outside": gradients(outside, data(rank)),
        "paths": sorted({s.module for s in nmcompile.last_report().sites}),
    }
    random = DistributedDataParallel(nmcompile.compile(net(), "gradients"))
    result["averaged"] = [gradients(random, data(0), seed) for seed in range(3)]
    with random.no_sync():
        result["own"] = [gradients(random, data(0), seed) for seed in range(3)]
    result["digest"] = nmcompile.last_report().graphs[0].decisions_digest
    return result


def fsdp() -> dict[str, Any]:
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))

    def sharded() -> Net:
        model = net()
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    each = nmcompile.compile(sharded(), MSE, each="layers.*")
    alone = nmcompile.compile(net(), MSE, each="layers.*")  # the head is no layer: dense
    result = {"alone": gradients(alone, data(rank)), "each": gradients(each, data(rank))}
    whole = nmcompile.compile(sharded(), MSE)
    result["whole"] = gradients(whole, data(rank))
    result["uncompiled"] = nmcompile.last_report().uncompiled
    first = nmcompile.compile(sharded(), FIRST_DENSE, each="layers.*")
    gradients(first, data(rank))
    sites = nmcompile.last_report().sites
    result["pruned"] = {
        m: any(s.pruned for s in sites if s.module == m) for m in {s.module for s in sites}
    }
    result["refused"] = message_of(lambda: nmcompile.compile(sharded(), FIRST_DENSE)(data(rank)))
    random = nmcompile.compile(sharded(), "gradients", each="layers.*")
    result["random"] = gradients(random, data(0))
    return result


def tp() -> dict[str, Any]:
    """Equal data on both ranks: the computation outside of the split layers is replicated."""
    mesh = init_device_mesh("cpu", (2,))
    model = nmcompile.compile(tensor_parallel(net(), mesh), MSE)
    result = {
        "split": gradients(model, data(0)),
        "alone": gradients(nmcompile.compile(net(), MSE), data(0)),
    }
    random = nmcompile.compile(tensor_parallel(net(), mesh), "full")
    result["random"] = gradients(random, data(0))
    result["dgrad"] = next(
        s.sizes[1:] for s in nmcompile.last_report().sites
        if s.module == "layers.1.down" and s.role == "dgrad"
    )  # fmt: skip
    torch._dynamo.reset()
    torch.manual_seed(dist.get_rank())  # ranks that share a computation must not do this
    dist.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        unequal = nmcompile.compile(tensor_parallel(Net(), mesh), "full")
        unequal(data(0)).sum().backward()
    result["warned"] = [str(w.message) for w in caught if w.category is nmcompile.NMWarning]
    return result


def fsdp_tp() -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def both(policy: Any) -> Net:
        model = tensor_parallel(net(), mesh["tensor"])
        for layer in model.layers:
            fully_shard(layer, mesh=mesh["data"])
        return nmcompile.compile(fully_shard(model, mesh=mesh["data"]), policy, each="layers.*")

    part = mesh["data"].get_local_rank()
    result = {"both": gradients(both(MSE), data(part)), "part": part}
    result["alone"] = gradients(nmcompile.compile(net(), MSE, each="layers.*"), data(part))
    # Equal data everywhere: the input's gradient shows which masks a rank drew.
    x = data(0).requires_grad_()
    gradients(both("gradients"), x)
    assert x.grad is not None
    result["input_gradient"] = x.grad.tolist()
    return result


def other_policy() -> dict[str, Any]:
    """Rank 1 reads a policy of its own, as from a stale file."""
    if dist.get_rank() == 1:
        dist.barrier()
    model = nmcompile.compile(net(), "full" if dist.get_rank() == 0 else "gradients")
    message = message_of(lambda: model(data(0)))
    if dist.get_rank() == 0:
        dist.barrier()
    return {"message": message}


def schedule() -> dict[str, Any]:
    """DDP and FSDP2 under one schedule; a rank that loses count; a rank with other phases."""
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
    phases = {0: "dense", 2: "gradients", 4: "dense"}
    result: dict[str, Any] = {}

    def train(model: nn.Module, schedule: nmcompile.Schedule) -> list[float]:
        optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
        torch.manual_seed(1)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for _ in range(6):
            optimizer.zero_grad()
            loss = model(data(rank)).square().mean()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        result["compiled"] = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
        return losses

    replicated = net()
    one = nmcompile.Schedule(replicated, phases)
    ddp = DistributedDataParallel(replicated)
    one.warm_up(data(rank))
    result["ddp"], result["ddp_compiled"] = train(ddp, one), result["compiled"]
    result["weights"] = replicated.head.weight.tolist()

    sharded = net()
    for layer in sharded.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    two = nmcompile.Schedule(sharded, phases, each="layers.*")
    two.warm_up(data(rank))
    result["untouched"] = all(p.grad is None for p in sharded.parameters())
    result["fsdp"], result["fsdp_compiled"] = train(sharded, two), result["compiled"]
    result["pruned"] = [r.totals.pruned_sites > 0 for r in two.reports.values()]

    _torch.process_group_store().set_timeout(timedelta(seconds=3))
    result["lost"] = _said(lambda: one.step(at=2 if rank == 0 else 1))
    dist.barrier()
    if rank == 1:
        dist.barrier()
    other = phases if rank == 0 else {0: "dense", 3: "gradients"}
    result["other"] = _said(lambda: nmcompile.Schedule(net(), other))
    if rank == 0:
        dist.barrier()
    return result


def kept_masks() -> dict[str, Any]:
    """Masks and parameters of DDP, and of one process on the data of both; what FSDP is told."""
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))

    def train(model: nn.Module, x: Tensor) -> list[Any]:
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        masks = nmcompile.Masks(model)
        named = {n: [m.tolist(), masks.flip_rates()[n]] for n, m in masks.tensors().items()}
        return [named, [p.tolist() for p in model.parameters()]]

    both = torch.cat([data(0), data(1)])
    result = {"alone": train(nmcompile.compile(net(), KEPT), both)}
    result["ddp"] = train(DistributedDataParallel(nmcompile.compile(net(), KEPT)), data(rank))
    sharded = net()
    for layer in sharded.layers:
        fully_shard(layer, mesh=mesh)
    call = nmcompile.compile(fully_shard(sharded, mesh=mesh), KEPT, each="layers.*")
    result["fsdp"] = message_of(lambda: call(data(rank)))
    return result


def _said(call: Callable[[], Any]) -> str:
    try:
        call()
    except nmcompile.ScheduleError as error:
        return str(error)
    return ""


def message_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except torch._dynamo.exc.BackendCompilerFailed as error:
        return str(error.inner_exception)
    return ""


def main() -> None:
    scenario, folder = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result = globals()[scenario]()
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
