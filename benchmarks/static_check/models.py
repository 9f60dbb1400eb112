"""The kernels that real models get: the compiler's own passes, run on small copies of them.

Nothing is compiled and no GPU is needed. The sizes are small, but no two that a kernel could take
for one another are equal; a kernel does not depend on them. What is not as on CUDA: operators are
decomposed, and attention is chosen, as for the CPU, and autocast has the CPU's lists.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu_check.cases import networks
from nmcompile import Policy
from nmcompile.capture.regions import Region
from nmcompile.codegen.kernel_spec import KernelSpec
from nmcompile.inductor.options import Settings
from nmcompile.inductor.plan_only import plan_only
from nmcompile.passes.pipeline import POST_GRAD
from nmcompile.passes.plan import Kernels
from nmcompile.passes.run import run

#: Recipes and models whose kernels are checked where time matters.
FEW = (("llama", "gpt2", "vit"), ("full",))
Made = tuple[nn.Module, tuple[Tensor, ...]]
#: Every recipe that prunes; each product runs sparse wherever one can.
RECIPES = ("full", "full-exact", "weights", "activations", "gradients", "paper-1:2")


class ViT(nn.Module):
    """Patches, two encoder layers with dropout and GELU as ``erf``, a classifier."""

    def __init__(self, width: int = 96, classes: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        layer = nn.TransformerEncoderLayer(
            width, 4, 3 * width, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # [B, 3, H, W], [B]
        x = self.layers(self.patches(images).flatten(2).transpose(1, 2))
        return F.cross_entropy(self.head(x.mean(1)).float(), labels)


def _llama() -> Made:
    shape = networks.LlamaShape(128, 352, 4, 2, 2, 192, batch=5, context=32)
    return networks.llama(shape, "cpu")


def _gpt2() -> Made:
    return networks.gpt2(networks.GPT2Shape(128, 4, 2, 192, batch=5, context=32), "cpu")


def _resnet() -> Made:
    shape = networks.ResNetShape(32, (2, 2, 2, 2), 32, batch=3, size=64)
    return networks.resnet(shape, "cpu")


def _vit() -> Made:
    model = ViT().to(torch.bfloat16)
    return model, (torch.randn(5, 3, 32, 32, dtype=torch.bfloat16), torch.randint(32, (5,)))


def _mixed(make: Callable[[], Made]) -> Callable[[], Made]:
    """The model in float32, to be run under autocast."""

    def made() -> Made:
        model, batch = make()
        floats = (x.float() if x.is_floating_point() else x for x in batch)
        return model.float(), tuple(floats)

    return made


MODELS: dict[str, Callable[[], Made]] = {
    "llama": _llama,
    "gpt2": _gpt2,
    "resnet": _resnet,
    "vit": _vit,
    "llama autocast": _mixed(_llama),
    "gpt2 autocast": _mixed(_gpt2),
    "resnet autocast": _mixed(_resnet),
    "vit autocast": _mixed(_vit),
}


def specs(
    models: Sequence[str] = tuple(MODELS), recipes: Sequence[str] = RECIPES
) -> dict[KernelSpec, str]:
    """Every kernel that one of the models gets under one of the recipes, and the first of these."""
    found: dict[KernelSpec, str] = {}
    for name in models:
        for recipe in recipes:
            for spec in specs_of(name, recipe):
                found.setdefault(spec, f"{name}, {recipe}")
    return found


def to_json(found: dict[KernelSpec, str]) -> str:
    """What ``from_json`` reads: specs do not depend on the version of Triton."""
    return json.dumps([[model, spec.to_json()] for spec, model in found.items()])


def from_json(text: str) -> dict[KernelSpec, str]:
    """The inverse of ``to_json``."""
    return {KernelSpec.from_json(spec): model for model, spec in json.loads(text)}


def specs_of(name: str, recipe: str) -> Iterator[KernelSpec]:
    """The kernels of a training step of one model, in the order of its graphs."""
    policy = Policy(extends=recipe, execution="sparse")
    graphs: list[Any] = []

    def capture(gm: Any, inputs: list[Any]) -> Any:
        planned = plan_only(gm, inputs, Settings(policy, region=Region()))
        graphs.extend(planned.graphs)
        return planned.run

    torch.manual_seed(0)
    torch.compiler.reset()
    model, batch = MODELS[name]()
    autocast: AbstractContextManager[Any] = nullcontext()
    if "autocast" in name:
        autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    with autocast:
        torch.compile(model, backend=capture, dynamic=False)(*batch).backward()
    for graph in graphs:
        kernels = Kernels(graph, ("cpu",), lower=False)
        run(POST_GRAD, kernels, "post-grad graph")
        yield from kernels.specs
