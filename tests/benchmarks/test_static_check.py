"""Which kernels the static check takes from models, and its table of Triton's versions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("typer")

import typer

from benchmarks import records
from benchmarks.static_check import __main__ as command
from benchmarks.static_check import models, versions
from benchmarks.static_check.cases import Case
from benchmarks.static_check.model import Result, judge
from benchmarks.static_check.sass import Machine
from nmcompile.codegen.kernel_spec import KernelSpec
from tests.kernels.specs import spec


def test_a_model_gives_the_kernels_of_its_forward_and_backward() -> None:
    found = models.specs(["gpt2"], ["activations", "gradients"])
    assert set(found.values()) == {"gpt2, activations", "gpt2, gradients"}
    assert {s.method for s in found} == {"mse", "mvue"}
    assert {s.orientations for s in found} == {"rows", "both"}
    assert any("aten.tanh.default" in [t.target for t in s.statements] for s in found)
    assert models.from_json(models.to_json(found)) == found


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_has_kernels(name: str) -> None:
    assert list(models.specs_of(name, "full"))


@pytest.mark.parametrize(
    ("arguments", "some"),
    [
        ([], True),
        (["--arch", "sm_80"], False),
        (["--kernel", "swiglu"], False),
        (["--models", "none"], False),
        (["--models", "few", "--kernel", "a model"], True),
    ],
)
def test_what_is_asked_for_is_checked(
    arguments: list[str], some: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checked: list[Case] = []

    class Pool:
        def __init__(self, workers: int) -> None: ...
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None: ...
        def map(self, _: object, cases: list[Case]) -> list[Result]:
            checked.extend(cases)
            return []

    monkeypatch.setattr(command, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(models, "specs", lambda *_: {spec("gelu_tanh"): "a model, full"})
    assert command.main([*arguments, "--csv", str(tmp_path / "out.csv")]) == 0
    assert ["a model, full" in case.name for case in checked].count(True) == some


def test_kernels_of_a_file_are_checked_alone(tmp_path: Path) -> None:
    kinds = {spec("gelu_tanh"): "one, full", spec("copy"): "two, weights"}
    path = tmp_path / "specs.json"
    path.write_text(models.to_json(kinds))
    options = command.parser().parse_args(["--specs", str(path)])
    cases = command.chosen(options)
    assert [case.spec for case in cases] == list(kinds)
    assert [case.model for case in cases] == list(kinds.values())
    options.arch = ["sm_90"]
    assert command.chosen(options) == [*command.all_cases(("sm_90",)), *cases]


def test_a_kernel_of_a_model_may_compute_much_but_not_spill() -> None:
    case = Case.of("sm_90", spec("dropout_residual", dtype="bfloat16"), "a model")
    elements = case.shape.rows * case.shape.columns // (32 * case.shape.warps)
    # bfloat16, float32 and a flag are read, the values and the operand itself are written.
    wide = {"LDG.E.128": 6 * elements // 16, "STG.E.128": 3 * elements // 16 + 1}
    busy = Counter({**wide, "LDG.E.64": elements // 8, "LOP3.LUT": 10**4})
    narrow = Counter({**busy, "LDG.E.128": 2, "LDG.E.64": elements})
    found = [
        judge(case, Machine(opcodes, loop=False, registers=255, spilled=spilled, shared=0))
        for opcodes, spilled in ((busy, 0), (busy, 8), (narrow, 0))
    ]
    assert found[0].bytes_floor == 2 + 4 + 1 + 2 + 1.125
    assert [r.failures for r in found[:2]] == [[], ["spills 8 bytes"]]
    assert "loads its inputs 8 bytes at a time" in found[2].failures
    assert found[0].ratio is not None
    assert found[0].ratio > 2


def test_operands_of_one_kernel_have_programs_of_their_own() -> None:
    one = spec("dropout_residual", (1, 0), dtype="bfloat16", keep_dense=False)
    two = one.model_copy(update={"operands": one.operands * 2})
    code = Machine(Counter({"LDG.E.128": 96, "STG.E.128": 16, "FADD": 640}), False, 99, 0, 0)
    first, both = (judge(Case.of("sm_90", kind, "a model"), code) for kind in (one, two))
    assert first.failures == both.failures == []
    assert both.instructions == 2 * first.instructions
    assert (first.bytes_floor, both.bytes_floor) == (7 + 2 * 1.125, 7 + 4 * 1.125)


def test_rows_of_a_version_replace_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, seen, planned = tmp_path / "versions.csv", [], []

    def specs() -> dict[KernelSpec, str]:
        planned.append(1)
        return {spec("gelu_tanh"): "a model, full"}

    def examined(home: Path, specs: Path, workers: int, _: bool) -> list[dict[str, str]]:
        kinds: dict[KernelSpec, str] = models.from_json(specs.read_text())
        seen.append((home.name, len(kinds)))
        row = dict.fromkeys(versions.COLUMNS, "16") | {"kernel": "k", "failures": ""}
        return [row | {"failures": "spills 8 bytes" if home.name == "3.8" else "", "more": "1"}]

    monkeypatch.setattr(versions, "installed", lambda version, folder: Path(version))
    monkeypatch.setattr(versions, "examined", examined)
    monkeypatch.setattr(models, "specs", specs)
    for chosen, code in ((["3.6", "3.8"], 1), (["3.6"], 0)):
        with pytest.raises(typer.Exit) as ended:
            versions.main(chosen, tmp_path, 1, out)
        assert ended.value.exit_code == code
    assert seen == [("3.6", 1), ("3.8", 1), ("3.6", 1)]
    assert planned == [1]  # a second run goes on with what the first one planned
    rows = records.read(out)
    assert sorted((r["triton"], r["failures"]) for r in rows) == [
        ("3.6", ""),
        ("3.8", "spills 8 bytes"),
    ]
    assert "more" not in rows[0]
