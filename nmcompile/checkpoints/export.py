"""``nmcompile.export``: a trained model's weight masks, written into a dense checkpoint.

model, under its masks              plain model
y = x (W * mask(W))^T        ->     y = x V^T,  V = W * mask(W) from the file
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nmcompile import cache
from nmcompile._dynamo import inside_wrappers
from nmcompile._torch import is_sharded
from nmcompile.checkpoints.pruned import pruned_sites, refused, report_of_model
from nmcompile.errors import ArgumentError, ExportError, shown
from nmcompile.gemm import OperandKind, Role
from nmcompile.masks import reference
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.policy.paths import without_wrappers
from nmcompile.reason import Code
from nmcompile.report.report import Report
from nmcompile.report.rows import Site, WeightRow
from nmcompile.weight_masks import table
from nmcompile.weight_masks.stored_mask import StoredMask

_DTYPES = {"float32", "float64", "bfloat16", "float16"}


@dataclass(frozen=True)
class Layer:
    """One pruned weight of an exported checkpoint.

    ``along`` are the dimensions of the weight that the forward product reduces over, in which
    every block of ``format`` holds; ``kept`` is the share of its elements that are not zero.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    format: str
    method: str
    along: tuple[int, ...]
    kept: float
    rule: str | None


@dataclass(frozen=True)
class Exported:
    """What was written: the checkpoint, the list beside it, and what they hold.

    ``dense`` names the forward products whose weight no mask was taken of, with the reason.
    ``note`` is what else there is to say.
    """

    path: Path
    listing: Path
    layers: tuple[Layer, ...]
    dense: tuple[tuple[str, str], ...]
    note: str = ""

    def __str__(self) -> str:
        formats = ", ".join(sorted({layer.format for layer in self.layers}))
        what = f"{len(self.layers)} weights pruned ({formats})" if self.layers else "all dense"
        return f"{self.path}: {what}, listed in {self.listing.name}. {self.note}".rstrip()


def export(model: nn.Module, path: str | os.PathLike[str], *, overwrite: bool = False) -> Exported:
    """Write a model's state with its weight masks baked in, as a dense safetensors checkpoint.

    The masks are those that the forward takes or keeps now (recipe ``weights``, or any rule that
    prunes the weight in fprop): the plain model that loads the file computes what the compiled one
    computes in evaluation. Every pruned weight is read back and checked: N:M along what the forward
    reduces over, before the file takes its name. A list of them is written beside it, as
    ``NAME.layers.json``.

    A policy that prunes no weight leaves dense weights, which the result says (``note``) and the
    list too. The compressed formats of serving libraries are not written.

    Args:
        model: as it was trained: compiled in place, by a ``Schedule`` (under the phase that holds),
            or what ``torch.compile(..., backend="nm_sparse")`` returned. It must have run once.
        path: the file to write, which ends in ``.safetensors``, in a folder that exists.
        overwrite: whether a file of that name may be replaced.

    Returns:
        What was written.

    Raises:
        ArgumentError: ``model`` is no module, ``path`` no path.
        ExportError: nothing of the model was compiled or has run, a mask cannot be written into
            the parameter that it is of, weights are sharded, or the file cannot be written;
            nothing is left half-written.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"a model to export is a module, not {shown(model)}")
    target = _target(path, overwrite)
    save_file, load_file = _safetensors()
    report = report_of_model(model)
    sites = pruned_sites(report)
    tensors, names = _state(inside_wrappers(model))
    baked: dict[str, Tensor] = {}
    for name, site in sites.items():
        if name not in tensors:
            raise ExportError(
                f"the weight {name} of {site.module} is no part of the model's state_dict(): "
                "its mask has no place in a checkpoint"
            )
        assert site.weight is not None
        value = tensors[name]
        for twin in names[name]:
            baked[twin] = torch.where(_keep(value, site, site.weight), value.detach(), 0)
    layers = tuple(_layer(name, s, baked[name]) for name, s in sites.items())
    listing = target.with_name(f"{target.stem}.layers.json")
    made = Exported(target, listing, layers, _dense(report, sites), _note(report, sites))
    with _written_whole(target) as temporary:
        save_file(_on_their_own(tensors | baked), temporary, {"format": "pt"})
        _verify(load_file(temporary), sites)
        cache.write(listing, _listing(made, report).encode())
    return made


def _target(path: Any, overwrite: bool) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentError(f"the path of a checkpoint is text, not {shown(path)}")
    target = Path(os.fsdecode(path))
    if target.suffix != ".safetensors":
        raise ExportError(f"{target}: write a file whose name ends in .safetensors")
    if not target.parent.is_dir():
        raise ExportError(f"{target}: there is no folder {target.parent}: make it first")
    if target.exists() and (target.is_dir() or not overwrite):
        raise ExportError(f"{target} is there already: write overwrite=True, or another name")
    return target


def _safetensors() -> tuple[Any, Any]:
    try:
        from safetensors.torch import load_file, save_file
    except ImportError as error:
        raise ExportError(
            "safetensors is not installed, which writes the checkpoint: "
            'pip install "nmcompile[export]"'
        ) from error
    return save_file, load_file


def _dense(report: Report, sites: dict[str, Site]) -> tuple[tuple[str, str], ...]:
    rows = {
        (s.module or "(root)", s.reason if s.pruned is None else f"its {s.pruned} is pruned")
        for s in report.sites
        if s.role is Role.FPROP and s.weight is None
    }
    return tuple(sorted(rows))


def _note(report: Report, sites: dict[str, Site]) -> str:
    notes = []
    if not sites:
        notes.append("The policy prunes no weight in the forward: the weights are dense.")
    if any(s.role is Role.FPROP and s.pruned is OperandKind.ACTIVATION for s in report.sites):
        notes.append("It prunes activations, which no checkpoint holds: the plain model does not.")
    return " ".join(notes)


# -- the weights


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The state under the names of policies, and for each name all those of the same tensor.

    Raises:
        ExportError: a value is no tensor, or not whole on this rank.
    """
    state = {without_wrappers(k): v for k, v in model.state_dict(keep_vars=True).items()}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ExportError(
                f"{name} in the state_dict() is no tensor but {shown(value)}, which safetensors "
                "cannot hold"
            )
        if is_sharded(value):
            raise ExportError(
                f"{name} is sharded over ranks: gather the weights into a model of one process, "
                "compiled with the same policy, run it once and export that"
            )
    names = {n: [k for k, v in state.items() if v is value] for n, value in state.items()}
    return state, names


def _keep(value: Tensor, site: Site, row: WeightRow) -> Tensor:
    """The mask that the forward takes, in the shape of the parameter.

    One that is kept between steps; else one that is taken now, in the type that the product
    multiplies in: under autocast, weights that differ in float32 may be equal there, and the first
    is kept.
    """
    if site.dtype not in _DTYPES:
        raise refused(site, f"it multiplies in {site.dtype}")
    stored = row.mask(NMFormat.parse(str(site.format)), Method(str(site.method)))
    if not site.has(Code.KEPT):
        return stored.take(value.to(getattr(torch, site.dtype)))
    kept = table.masks_of(value).get(stored)
    return stored.take(value) if kept is None or kept.stale else kept.mask


def _layer(name: str, site: Site, value: Tensor) -> Layer:
    assert site.weight is not None
    return Layer(
        name=name,
        module=name.rpartition(".")[0],
        shape=tuple(value.shape),
        format=str(site.format),
        method=str(site.method),
        along=site.weight.dims,
        kept=(value != 0).sum().item() / max(1, value.numel()),
        rule=site.rule,
    )


def _verify(written: dict[str, Tensor], sites: dict[str, Site]) -> None:
    """Every pruned weight of the file is N:M along what the forward reduces over.

    Raises:
        ExportError: one is not.
    """
    for name, site in sites.items():
        row, form = site.weight, NMFormat.parse(str(site.format))
        assert row is not None
        along = StoredMask(form, Method.MSE, row.dims, row.groups)
        value, dims = along.by_group(written[name], row.dims)
        kept = (reference.to_blocks(value, list(dims), form.m) != 0).sum(-1)
        if kept.numel() and int(kept.max()) > form.n:
            raise ExportError(
                f"{name} has a block of {form.m} with {int(kept.max())} non-zeros along "
                f"{row.dims}, where {form} was promised: this is a mistake of nmcompile, please "
                "report it; nothing was written"
            )


# -- files


def _on_their_own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, and copied where two share memory: tied weights stand under all their names."""
    found, seen = {}, set()
    for name, value in tensors.items():
        mine = value.detach().cpu().contiguous()
        place = mine.untyped_storage().data_ptr()
        found[name] = mine.clone() if place in seen else mine
        seen.add(place)
    return found


@contextlib.contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """A file beside ``target`` that takes its name at the end, or goes."""
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        try:
            yield temporary
            os.replace(temporary, target)
        except OSError as error:
            raise ExportError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _listing(made: Exported, report: Report) -> str:
    document = {
        "schema": 1,
        "weights": made.path.name,
        "note": made.note,
        "policy": report.policy,
        "layers": [layer.__dict__ for layer in made.layers],
        "dense": [{"module": module, "reason": reason} for module, reason in made.dense],
    }
    return json.dumps(document, indent=2) + "\n"
