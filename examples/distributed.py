"""Train a small language model with N:M sparse products, with one process or several.

    python -m examples.distributed
    torchrun --nproc-per-node 2 -m examples.distributed --parallel fsdp
    torchrun --nproc-per-node 4 -m examples.distributed --parallel fsdp --tensor-parallel 2

``ddp`` copies the model, ``fsdp`` shards its parameters (``fully_shard``); ``--tensor-parallel n``
splits the layers of each block among n neighbouring processes. Blocks are compiled one by one, so
that hooks between them stay outside of the graphs. Runs on GPUs (NCCL) where each process can have
one, else on the CPU (gloo).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import nmcompile

CONTEXT, WORDS = 64, 256  # bytes of a sequence, and how many there are


class Model(nn.Module):
    """A decoder of PyTorch's own layers, on bytes; its forward is the loss."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.position = nn.Parameter(torch.randn(CONTEXT, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, WORDS)
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:  # [B, CONTEXT], [B, CONTEXT]
        y = self.embed(x) + self.position
        for block in self.blocks:
            y = block(y, self.mask, is_causal=True)
        return nn.functional.cross_entropy(self.head(y).flatten(0, 1), targets.flatten())


def batches(size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of Python's own source, and the bytes that follow: each [size, CONTEXT]."""
    sources = sorted(Path(os.__file__).parent.glob("*.py"))[:60]
    text = torch.frombuffer(bytearray(b"".join(p.read_bytes() for p in sources)), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - CONTEXT, (size, 1), generator=generator)
        window = text[starts + torch.arange(CONTEXT + 1)].long()
        yield window[:, :-1], window[:, 1:]


class Parallel(StrEnum):
    ddp = "ddp"
    fsdp = "fsdp"


def build(
    policy: str, parallel: Parallel, mesh: DeviceMesh, device: str, width: int, depth: int
) -> nn.Module:
    """The model, split over the mesh (dimensions ``data`` and ``tensor``) and compiled."""
    torch.manual_seed(0)  # all processes alike
    net = Model(width, depth).to(device)
    data, tensor = mesh["data"], mesh["tensor"]
    blocks: Any = net.blocks
    if tensor.size() > 1:
        for block in blocks:
            parallelize_module(
                block, tensor, {"linear1": ColwiseParallel(), "linear2": RowwiseParallel()}
            )
    if parallel is Parallel.fsdp:
        for block in blocks:
            fully_shard(block, mesh=data)
        fully_shard(net, mesh=data)
    nmcompile.compile(net, policy, each="blocks.*")
    if parallel is Parallel.ddp and data.size() > 1:
        return DistributedDataParallel(net, process_group=data.get_group())
    return net


def train(net: nn.Module, batch: int, steps: int, rank: int, device: str) -> list[float]:
    """Losses of each step, of this process's part of the data."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    torch.manual_seed(0)  # alike on all processes: the masks of data-parallel ones differ anyway
    losses = []
    for _, (x, y) in zip(range(steps), batches(batch, seed=rank), strict=False):
        loss = net(x.to(device), y.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main(
    policy: Annotated[str, typer.Option(help="A recipe or a policy file.")] = "full",
    parallel: Annotated[Parallel, typer.Option(help="Copy the model, or shard it.")] = Parallel.ddp,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="Processes per layer.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = 60,
    batch: Annotated[int, typer.Option(min=1, help="Sequences a process and step.")] = 16,
    width: Annotated[int, typer.Option(help="Features.")] = 64,
    depth: Annotated[int, typer.Option(help="Blocks.")] = 2,
) -> None:
    """Train a small language model on the bytes of Python's standard library."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)  # torchrun sets them
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    if world % tensor_parallel:
        raise typer.BadParameter(f"{world} processes cannot be split by {tensor_parallel}")
    kind = "cuda" if local < torch.cuda.device_count() else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(local)
    if world == 1:
        os.environ.setdefault("MASTER_ADDR", "localhost")
        os.environ.setdefault("MASTER_PORT", "0")
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    shape = (world // tensor_parallel, tensor_parallel)
    mesh = init_device_mesh(kind, shape, mesh_dim_names=("data", "tensor"))
    try:
        net = build(policy, parallel, mesh, kind, width, depth)
        losses = train(net, batch, steps, mesh["data"].get_local_rank(), kind)
        last = torch.tensor(sum(losses[-10:]) / len(losses[-10:]), device=kind)
        dist.all_reduce(last)
        if dist.get_rank() == 0:
            console = Console()
            print(nmcompile.last_report())
            console.print(
                f"{world} processes, data {shape[0]} x tensor {shape[1]} ({parallel}): "
                f"loss {losses[0]:.3f} -> {last.item() / world:.3f}"
            )
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
