"""GPUs as data: what is known of each, by name or from the machine, and a file that replaces it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch

import nmcompile
from nmcompile import OptionError
from nmcompile.compressed.hardware import Reads
from nmcompile.compressed.layouts import Layout
from nmcompile.execution import targets
from nmcompile.execution.targets import Gain, Target, named, target_of, to_toml

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
NAMES = ["h100", "h200", "a100", "l40s", "rtx4090", "b200"]


def test_every_figure_says_whether_it_was_measured_and_where_it_is_from() -> None:
    assert list(nmcompile.targets()) == NAMES
    for target in nmcompile.targets().values():
        assert target.figures is not None
        for name, figure in target.figures:
            assert figure.known in ("measured", "assumed")
            assert len(figure.source) > 5, (target.name, name)


def test_what_was_measured() -> None:
    figures = named("h100").figures
    assert figures is not None
    own = tomllib.loads((RESULTS / "gpu_check_h100_80gb_hbm3_targets.toml").read_text())["h100"]
    for name in ("dense", "bandwidth"):
        measured = own["figures"][name]["value"]
        assert getattr(figures, name).value == pytest.approx(measured, rel=0.01)
        assert getattr(figures, name).known == "measured"
    for gain in own["gains"]:
        found = named("h100").gain(gain["rows"], gain["columns"], gain["k"])
        assert found == pytest.approx(gain["gain"], rel=0.05)
    text = str(nmcompile.targets())
    assert "dense     763 TFLOP/s    measured" in text
    assert "gain      1.35           assumed" in text
    assert [line.partition(":")[0] for line in text.splitlines() if line[0] != " "] == NAMES


@pytest.mark.parametrize(
    ("name", "hint"), [("h10", "'h100'"), ("rtx-4090", "'rtx4090'"), ("tpu", "known: ")]
)
def test_an_unknown_target_is_an_error_with_the_nearest_name(name: str, hint: str) -> None:
    with pytest.raises(OptionError, match="is no target") as caught:
        named(name)
    assert hint in str(caught.value)
    assert named("H100") == named("h100")


class TestOfTheMachine:
    """``target_of`` of a device that this machine does not have."""

    @pytest.fixture
    def gpu(self, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        reads = Reads(Layout.CUSPARSELT_SM90)
        monkeypatch.setattr(targets.hardware, "layout_on", lambda device: reads)
        return monkeypatch

    def test_a_known_gpu_has_its_figures(self, gpu: pytest.MonkeyPatch) -> None:
        name = "NVIDIA H100 80GB HBM3 (null GPU)"
        gpu.setattr(torch.cuda, "get_device_name", lambda device: name)
        target = target_of("cuda:0")
        assert (target.name, target.gpu) == ("h100", name)
        assert target.figures == named("h100").figures

    def test_another_one_has_none(self, gpu: pytest.MonkeyPatch) -> None:
        gpu.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H300")
        target = target_of("cuda:0")
        assert (target.name, target.gpu, target.figures) == ("cuda:0", "NVIDIA H300", None)
        assert target.layout is Layout.CUSPARSELT_SM90
        assert "no figures" in str(target)

    def test_a_cpu_decodes_and_other_devices_run_nothing_sparse(self) -> None:
        assert target_of("cpu").decodes
        assert target_of("cpu").figures is None
        assert target_of("meta").layout is None
        assert "meta" in target_of("meta").reason
        assert not named("h100").decodes


class TestAFileOfOnesOwn:
    def write(self, monkeypatch: pytest.MonkeyPatch, path: Path, text: str) -> None:
        path.write_text(text)
        monkeypatch.setenv(targets.OWN_TARGETS, str(path))
        targets._known.cache_clear()
        targets._content.cache_clear()

    def test_what_was_read_at_first_holds(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        path = tmp_path / "own.toml"
        self.write(monkeypatch, path, "schema = 1\n[h100.figures]\n")
        before = targets.fingerprint()
        for text in ("schema = ", None):
            path.unlink() if text is None else path.write_text(text)
            assert targets.fingerprint() == before
            assert "h100" in nmcompile.targets()

    def test_a_measurement_replaces_figures_and_gains(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        before, key = named("h100"), targets.fingerprint()
        text = """
            schema = 1
            [h100.figures]
            setup = { value = 9e-6, known = "measured", source = "here" }
            [[h100.gains]]
            rows = 16384
            columns = 14336
            k = 4096
            gain = 1.31
            known = "measured"
            source = "here"
        """
        self.write(monkeypatch, tmp_path / "own.toml", text)
        after = named("h100")
        assert before.figures is not None
        assert after.figures is not None
        assert after.figures.setup.value == 9e-6
        assert after.figures.dense == before.figures.dense
        assert after.gain(16384, 14336, 4096) == 1.31
        assert "gain of 16384 x 14336 x 4096: 1.31, measured, here" in str(after)
        assert targets.fingerprint() != key
        assert named("h200") == nmcompile.targets()["h200"]

    def test_what_is_written_is_read_again(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        gain = Gain(rows=1, columns=2, k=3, gain=1.5, known="measured", source="here")
        changed = named("h200").model_copy(update={"gains": (gain,), "gpu": "Mine"})
        self.write(monkeypatch, tmp_path / "own.toml", to_toml([changed]))
        assert named("h200") == changed
        assert named("a100") == nmcompile.targets()["a100"]

    def test_the_example_of_the_page_is_such_a_file(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        page = (Path(__file__).parents[2] / "docs" / "decisions.md").read_text()
        (example,) = re.findall(r"```toml\n(.*?)```", page, re.S)
        self.write(monkeypatch, tmp_path / "own.toml", example)
        assert named("h100").gain(8192, 8192, 8192) == 1.31
        rows = re.findall(r"^\| (`[^|]*`) \| ([\d.]+) \| `(\w+)` \|$", page, re.M)
        told = {name: row[1:] for row in rows for name in re.findall(r"`(\w+)`", row[0])}
        known = {t.name: t for t in nmcompile.targets().values()}
        assert told == {
            n: (".".join(map(str, t.capability or ())), str(t.layout)) for n, t in known.items()
        }

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("schema = 2", "write schema = 1"),
            ("schema = 1\nh100 = 3", "write schema = 1 and a table"),
            ("schema 1", "Expected '='"),
            ("schema = 1\n[h100]\nwidth = 3", "width: Extra inputs"),
            ("schema = 1\n[x9]\nfigures = {}", "gpu: Field required"),
        ],
    )
    def test_a_mistake_names_the_file_and_the_place(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, words: str
    ) -> None:
        self.write(monkeypatch, tmp_path / "own.toml", text)
        with pytest.raises(OptionError, match=r"targets of .*own\.toml") as caught:
            named("h100")
        assert words in str(caught.value)

    def test_a_file_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(targets.OWN_TARGETS, "/nowhere.toml")
        with pytest.raises(OptionError, match=r"targets of /nowhere\.toml"):
            nmcompile.targets()


def test_the_gain_of_a_shape_is_that_of_the_nearest_one() -> None:
    gains = [
        Gain(rows=r, columns=c, k=k, gain=g, known="measured", source="a test")
        for r, c, k, g in ((1024, 1024, 1024, 0.9), (16384, 4096, 14336, 1.4))
    ]
    target = named("h100").model_copy(update={"gains": tuple(gains)})
    assert target.gain(8192, 8192, 8192) == 1.4
    assert target.gain(512, 4096, 512) == 0.9
    assert named("a100").gain(8192, 8192, 8192) == 1.35  # it has no table


def test_targets_are_values() -> None:
    assert named("h100") == Target.model_validate(named("h100").model_dump())
    assert hash(named("h100")) != hash(named("h200"))
