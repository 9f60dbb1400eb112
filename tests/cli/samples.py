"""A file that TARGET can name."""

from __future__ import annotations

CASE = """
import torch
from torch import nn

def model(bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16, bias=bias), nn.GELU(), nn.Linear(16, 8))

def case():
    return model(), (torch.randn(4, 8, requires_grad=True),), {}

def short():
    return model(), [torch.randn(4, 8)]

def nothing():
    return torch.relu, (torch.randn(3),)

def large():
    net = nn.Linear(4096, 4096, bias=False, dtype=torch.bfloat16, device="meta")
    return net, (torch.empty(32768, 4096, dtype=torch.bfloat16, device="meta", requires_grad=True),)

def fails():
    raise ValueError("the data is not here")

alone = model()
number = 3
ready = alone, (torch.randn(4, 8),)
def one():
    return (model(),)
def bare():
    return model(), torch.randn(4, 8)
def odd():
    return model(), (torch.randn(4, 8),), [1]
class holder:
    inner = case
"""

TUNED = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x, y):
        return (self.down(torch.relu(self.up(x))) - y).square().mean()

def batches():
    while True:
        yield torch.randn(8, 16), torch.randn(8, 16)

def case():
    torch.manual_seed(0)
    return Model(), next(batches()), {}, batches()

def one():
    return Model(), next(batches()), {}

def odd():
    return Model(), next(batches()), {}, 3

def logits():
    return nn.Linear(8, 8), (torch.randn(4, 8),), {}, [(torch.randn(4, 8),) for _ in "abc"]
"""
