"""``nmcompile doctor``: every path has a verdict, and a broken one ends in 1."""

from __future__ import annotations

import json

import pytest

from nmcompile.cli import doctor


def test_a_machine_without_a_gpu_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.show(as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    verdicts = {f["path"]: f["verdict"] for f in document["findings"]}
    assert verdicts["masks on the CPU"] == "works"
    assert verdicts["a training step on the CPU"] == "works"
    assert verdicts["sparse products on the CPU"] == "works"
    assert "broken" not in verdicts.values()
    assert document["versions"]["torch"]


def test_a_wrong_mask_and_a_crash_are_broken_and_end_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash() -> str:
        raise OSError("no space\nleft")

    monkeypatch.setattr(doctor.functional, "prune", lambda x, *rest: x)
    probes = {"masks": lambda: doctor._masks("cpu"), "crash": crash, "after": lambda: "fine"}
    monkeypatch.setattr(doctor, "probes", lambda: probes)
    assert not doctor.show(as_json=False)
    shown = capsys.readouterr().out
    assert "masks: broken: RuntimeError: mse differs from the oracle" in shown
    assert "crash: broken: OSError: no space" in shown
    assert "after: works: fine" in shown


def test_a_warning_of_ours_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    from nmcompile import NMWarning

    def warns() -> str:
        warnings.warn("a mask kernel could not be built", NMWarning, stacklevel=1)
        return "fine"

    monkeypatch.setattr(doctor, "probes", lambda: {"masks": warns})
    (finding,) = doctor.examine()
    assert (finding.verdict, finding.text) == ("broken", "a mask kernel could not be built")
