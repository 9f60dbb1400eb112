"""How long people wait for what shows them a plan: the command line, and the page of a report.

    python -m benchmarks.seeing                     # into benchmarks/results/seeing.csv, 4 minutes
    python -m benchmarks.seeing --layers 4 --rounds 2 --out /tmp/quick.csv

``nmcompile policy check`` and ``nmcompile explain`` of GPT-2 small from its configuration are whole
processes, in wall time. The page is that of a deeper GPT, opened in headless Chromium: milliseconds
until it can be used, and from a click to the frame that shows what it does. Run on an idle machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

import nmcompile
from benchmarks import records
from benchmarks.browser import chromium
from benchmarks.gpt import Shape
from benchmarks.table import Row, percentiles, show, write_csv

OUT = records.RESULTS / "seeing.csv"
# A click, and the time until the browser has drawn what it changes.
CLICK = """async (element) => {
  const start = performance.now();
  element.click();
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}"""


def gpt2(labels: bool = False) -> tuple[nn.Module, tuple[()], dict[str, torch.Tensor]]:
    """GPT-2 small and a batch of 4 x 512 tokens, as a TARGET of the command line."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = torch.randint(50257, (4, 512))
    return (
        GPT2LMHeadModel(GPT2Config()),
        (),
        {"input_ids": tokens} | ({"labels": tokens} if labels else {}),
    )


def gpt2_with_loss() -> tuple[nn.Module, tuple[()], dict[str, torch.Tensor]]:
    """The same with the loss in the model."""
    return gpt2(labels=True)


def wall(*arguments: str) -> float:
    """Seconds of one ``nmcompile`` command.

    Raises:
        CalledProcessError: it fails; what it printed is shown.
    """
    start = time.perf_counter()
    subprocess.run(
        [Path(sys.executable).with_name("nmcompile"), *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=records.ROOT,
    )
    return time.perf_counter() - start


def commands(rounds: int) -> list[Row]:
    """Rows of the commands' wall times."""
    target = "benchmarks.seeing:gpt2"
    policy = str(records.ROOT / "nmcompile" / "policy" / "recipes" / "full.toml")
    variants = {
        "policy check": (("policy", "check", policy), "<=1"),
        "explain GPT-2 small": (("explain", target, "--meta"), "<=15"),
        "explain GPT-2 small, loss": (("explain", f"{target}_with_loss", "--meta"), "<=15"),
    }
    return [
        _row(name, "seconds", [wall(*command) for _ in range(rounds)], bound)
        for name, (command, bound) in variants.items()
    ]


def page(layers: int, rounds: int) -> list[Row]:
    """Rows of a page's size and times.

    Raises:
        ImportError: playwright is not installed.
    """
    torch.manual_seed(0)
    model, batch = Shape(width=64, depth=layers, heads=2, context=32, batch=2).build()
    report = nmcompile.explain(model, *batch)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        file = report.to_html(Path(folder, "page.html"), "a GPT")
        ready, unfolded, clicks = [], [], []
        for _ in range(rounds):
            tab = browser.new_page(viewport={"width": 1500, "height": 1000})
            tab.goto(file.as_uri())
            tab.wait_for_selector("html[data-ready]", timeout=60_000)
            ready.append(float(tab.get_attribute("html", "data-ready") or "nan"))
            unfolded.append(tab.eval_on_selector("#unfold", CLICK))
            rows = tab.query_selector_all("#tree tbody tr")
            clicks += [row.evaluate(CLICK) for row in rows[:40]]
            tab.close()
        size = file.stat().st_size / 1e3
    what = f"page of {len(report.sites)} products"
    return [
        _row(what, "kB", [size], "<=500"),
        _row(what, "ready (ms)", ready, "<=500"),
        _row(what, "unfold all (ms)", unfolded, ""),
        _row(what, "select a module (ms)", clicks, "<=100"),
    ]


def _row(mode: str, metric: str, samples: Sequence[float], target: str) -> Row:
    return Row(
        kernel="seeing",
        provider="nmcompile",
        mode=mode,
        metric=metric,
        target=target,
        **percentiles(samples),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--rounds", type=int, default=5, help="processes, and openings of the page")
    parser.add_argument("--layers", type=int, default=84, help="blocks of the page's model")
    args = parser.parse_args(arguments)
    rows = page(args.layers, args.rounds) + commands(args.rounds)
    show(rows, Console())
    write_csv(args.out, rows)
    if any(row.missed for row in rows):
        raise SystemExit("a target is missed")


if __name__ == "__main__":
    main()
