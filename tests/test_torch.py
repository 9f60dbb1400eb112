"""The door to private PyTorch: what its functions promise, beyond that each name is there."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from nmcompile import _torch

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("configured", "passes"),
    [(None, ()), (print, (print,)), ([print, abs], (print, abs)), ([], ())],
)
def test_a_setting_of_passes_is_a_tuple(configured: Any, passes: Any) -> None:
    assert _torch.graph_passes(configured) == passes


def test_inductors_own_setting_can_be_read_so() -> None:
    for hook in ("joint_custom_pre_pass", "post_grad_custom_pre_pass"):
        found = _torch.graph_passes(getattr(_torch.inductor_config, hook))
        assert all(isinstance(p, CustomGraphPass) for p in found)


def test_options_are_inductors() -> None:
    assert "max_fusion_size" in _torch.inductor_option_names()
    settings = _torch.inductor_settings("max-autotune", {})
    assert settings["max_autotune"] is True
    assert _torch.inductor_settings(None, {"max_fusion_size": 8}) == {"max_fusion_size": 8}


@pytest.mark.parametrize(
    ("op", "composite"),
    [
        (aten.linear.default, True),
        (aten.matmul.default, True),
        (aten.mm.default, False),
        (aten.addmm.default, False),
        (torch.mm, False),
        ("mm", False),
    ],
)
def test_which_operators_are_made_of_others(op: Any, composite: bool) -> None:
    assert _torch.is_composite(op) is composite


def test_arguments_as_the_schema_orders_them() -> None:
    assert _torch.argument_names(aten.addmm.default) == ("self", "mat1", "mat2", "beta", "alpha")


def test_tensors_can_be_real_while_others_are_fake() -> None:
    with FakeTensorMode():
        assert isinstance(torch.ones(2), FakeTensor)
        with _torch.real_tensors():
            real = torch.ones(2)
        assert isinstance(torch.ones(2), FakeTensor)
    assert not isinstance(real, FakeTensor)
    assert real.sum() == 2


def test_one_process_has_no_store() -> None:
    assert _torch.process_group_store() is None


def test_one_process_is_one() -> None:
    assert _torch.process_group_size() == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, False),
        ({}, False),
        ({"triton.cudagraphs": True}, True),
        ({"max_fusion_size": 8}, False),
    ],
)
def test_whether_cuda_graphs_are_recorded(options: Any, expected: bool) -> None:
    assert _torch.records_cuda_graphs(options) is expected
    with _torch.inductor_config.patch({"triton.cudagraphs": True}):
        assert _torch.records_cuda_graphs(options)
        assert not _torch.records_cuda_graphs({"triton.cudagraphs": False})


def test_hooks_of_finished_gradients_can_be_left_out() -> None:
    p, calls = torch.nn.Parameter(torch.ones(2)), []
    p.register_post_accumulate_grad_hook(calls.append)
    with _torch.without_gradient_hooks([p, torch.ones(1)]):
        p.sum().backward()
        assert calls == []
    p.sum().backward()
    assert calls == [p]


def test_a_trace_is_written_where_somebody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    log = _torch.private("torch._logging._internal", "trace_log")
    records: list[logging.LogRecord] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    monkeypatch.setattr(log, "handlers", [])
    assert not _torch.is_traced()
    log.handlers.append(Keeping())
    assert _torch.is_traced()
    _torch.trace_artifact("nmcompile_test", "the text")
    (record,) = [r for r in records if getattr(r, "metadata", {}).get("artifact")]
    assert record.metadata["artifact"]["name"] == "nmcompile_test"  # type: ignore[attr-defined]
    assert record.payload == "the text"  # type: ignore[attr-defined]
