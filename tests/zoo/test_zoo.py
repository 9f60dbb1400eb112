"""Every model of the zoo equals eager mode, trains and has a complete report; the page agrees.

One model of each family is compiled, but for the U-Net, whose kernels take minutes. The others,
which would only keep the C++ compiler busy, are interpreted after all passes;
``python -m benchmarks.zoo`` compiles every one.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

for package in ("typer", "transformers", "diffusers"):
    pytest.importorskip(package, reason="the model zoo needs nmcompile[integrations,study]")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.zoo import ENTRIES, table  # noqa: E402
from benchmarks.zoo.__main__ import app  # noqa: E402
from benchmarks.zoo.check import check  # noqa: E402
from benchmarks.zoo.interpreted import interpreted  # noqa: E402

COMPILED = {
    "fused-loss",
    "nested-regions",
    "gru",
    "float8-tensorwise",
    "bert",
    "llama",
    "qwen3-moe",
    "mamba",
    "bart",
    "vit",
    "resnet",
    "wav2vec2",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_model(name: str) -> None:
    with nullcontext() if name in COMPILED else interpreted():
        assert check(ENTRIES[name]).failures == []


def test_one_model_of_each_family_is_compiled() -> None:
    families = [ENTRIES[name].family for name in COMPILED]
    assert sorted([*families, "diffusion"]) == sorted({e.family for e in ENTRIES.values()})


def test_the_published_rows_are_those_of_the_zoo() -> None:
    rows = table.read()
    assert [row["name"] for row in rows] == list(ENTRIES)
    for row in rows:
        entry = ENTRIES[row["name"]]
        assert (row["family"], row["note"]) == (entry.family, entry.note)


def test_the_page_is_made_of_the_published_rows() -> None:
    assert table.PAGE.read_text() == table.page(table.read())


def test_an_unknown_model_is_an_error_with_the_nearest_name() -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["lama"])
    assert result.exit_code == 2
    assert "did you mean 'llama'?" in result.output


def test_a_run_replaces_the_rows_of_its_own_models(tmp_path: Path) -> None:
    def rows(*names: str, loss: str) -> list[table.Row]:
        return [dict.fromkeys(table.COLUMNS, loss) | {"name": name} for name in names]

    path = tmp_path / "zoo.csv"
    table.write(path, rows("gpt2", "bert", "gone", loss="1"), ["bert", "gpt2", "gone"])
    table.write(path, rows("gpt2", loss="2"), ["bert", "gpt2"])
    assert [(r["name"], r["loss_last"]) for r in table.read(path)] == [("bert", "1"), ("gpt2", "2")]


def test_reports_without_compiling(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        result = CliRunner().invoke(app, ["vit", "--reports", str(folder)])
        assert result.exit_code == 0, result.output
    written = {path.name: path.read_text() for path in folders[0].iterdir()}
    assert written.keys() == {"vit.full.json", "vit.full-exact.json"}
    assert written == {path.name: path.read_text() for path in folders[1].iterdir()}
    for name, text in written.items():
        (graph,) = json.loads(text)["graphs"]
        assert "digest" not in graph  # it covers the package's sources
        roles = [site["role"] for site in graph["sites"]]
        row = next(row for row in table.read() if row["name"] == "vit")
        assert [roles.count(role) for role in ("fprop", "dgrad", "wgrad")] == [
            int(row[role]) for role in ("fprop", "dgrad", "wgrad")
        ]
        assert ("reads the pruned activation" in json.dumps(graph["sites"])) == ("exact" in name)
