"""What a result says: the file, the table, JSON; and budgets."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from nmcompile import NMError, Policy
from nmcompile.tuning.result import curve_of, select
from tests.tuning.samples import rows, tuned


def test_the_file_is_a_policy_whose_rules_say_what_they_cost(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    text = tuned().to_toml(path)
    assert path.read_text() == text
    assert Policy.load(path) == tuned().policy
    assert text == (
        "# A policy by measurement (nmcompile tune).\n"
        "# budget flops = 0.6: 60.0 % of the FLOPs in pruned products\n"
        "# forward: loss +0.01 expected (measured +0.009), from 1.5 on 4 batches\n"
        "# gradients: 21.0 % more variance than the mini-batches' own, weighed as 0.021 of loss\n"
        "\n"
        "schema = 1\n"
        "\n"
        "# 1 product, 20.0 % of the FLOPs: loss +0.01\n"
        "[[rule]]\n"
        'module = "layers.0"\n'
        'role = "fprop"\n'
        'prune = "activation"\n'
        'format = "2:4"\n'
        'method = "mse"\n'
        "\n"
        "# 2 products, 40.0 % of the FLOPs: gradient noise +21 %\n"
        "[[rule]]\n"
        'role = ["dgrad", "wgrad"]\n'
        'prune = "gradient"\n'
        'format = "2:4"\n'
        'method = "mvue"\n'
    )


def test_json_is_complete(tmp_path: Path) -> None:
    data = json.loads(tuned().to_json(tmp_path / "tuned.json"))
    assert json.loads((tmp_path / "tuned.json").read_text()) == data
    assert data["schema_version"] == 1
    assert Policy.loads(data["policy"]) == tuned().policy
    chosen = [(r["module"], r["role"], r["chosen"]) for r in data["rows"]]
    assert chosen[0] == ("layers.0", "fprop", "activation 2:4")
    assert chosen[-1] == ("short", "fprop", None)
    assert data["curve"][0] == {"share": 0.0, "gain": 0.0, "loss": 0.0}


def test_the_table_has_every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    text = str(tuned("h100"))
    for word in ("layers.0", "layers.1", "short", "fewer than M = 4", "activation 2:4", "dense"):
        assert word in text
    assert "1500 us a step less on h100" in text


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (tuned().to_toml, tuned().to_json, tuned().plot):
        with pytest.raises(NMError, match="cannot be written"):
            write(tmp_path / "file" / "policy.png")


def test_select_takes_the_cheapest_for_a_budget() -> None:
    share = {key.module + key.role for key in select(rows(), 0.35, None)}
    assert share == {"layers.0wgrad", "layers.0fprop"}
    assert len(select(rows(), None, 0.0305)) == 2  # 0.001 + 0.01; 0.02 no longer fits
    assert len(select(rows(), None, 0.0315)) == 3
    assert len(select(rows(), None, 0.0315, scale=2.0)) == 2
    with pytest.raises(NMError, match=r"flops = 0.9 cannot be reached: products of 80.0%"):
        select(rows(), 0.9, None)
    with pytest.raises(NMError, match=r"the least that pruning a product costs is 0\.001"):
        select(rows(), None, 0.0001)


def test_the_curve_goes_up() -> None:
    points = curve_of(rows())
    assert [round(p.share, 6) for p in points] == [0, 0.2, 0.4, 0.6, 0.8]
    slopes = [(b.loss - a.loss) / (b.gain - a.gain) for a, b in itertools.pairwise(points)]
    assert slopes == sorted(slopes)
