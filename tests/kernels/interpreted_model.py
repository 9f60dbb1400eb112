"""Three training steps of a small model whose compress kernels are generated; prints the losses."""

from __future__ import annotations

import torch
from torch import nn

import nmcompile
from nmcompile import Policy


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64)).half()
    options = {"policy": Policy(extends="full", execution="sparse"), "nm.kernels": "generate"}
    step = torch.compile(model, backend="nm_sparse", options=options)
    x = torch.randn(64, 64).half()
    losses = []
    for _ in range(3):
        loss = (step(x) - x).float().square().mean()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.5 * p.grad
                p.grad = None
        losses.append(float(loss))
    print("losses", *losses)
    print("kernels", len(nmcompile.last_report().kernels))


if __name__ == "__main__":
    main()
