"""Makes the pictures of ``docs/images``: the page of a report, light and dark. ``make pictures``.

The model is two layers like Llama 3 8B's, on fake tensors: no weights, and no GPU.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, LlamaConfig

import nmcompile
from benchmarks.browser import chromium

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1440, "height": 900}
#: The module that is selected in the picture: the first one of this name.
SELECTED = "down_proj"


def report() -> nmcompile.Report:
    """Of a training step in bfloat16, 16,384 tokens, planned for an H100."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=2,
        num_attention_heads=32,
        num_key_value_heads=8,
        use_cache=False,
    )
    rule = nmcompile.Rule(module="lm_head", dense=True)
    policy = nmcompile.Policy(extends="full", rules=[rule])
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        tokens = torch.zeros(2, 8192, dtype=torch.long)
        return nmcompile.explain(model, tokens, labels=tokens, policy=policy, target="h100")


def shoot(page: Path) -> None:
    """The page in both colour schemes, as WebP."""
    with chromium() as browser:
        for scheme in ("light", "dark"):
            tab = browser.new_page(viewport=SIZE, color_scheme=scheme)
            tab.set_default_timeout(120_000)  # a busy machine draws slowly
            tab.goto(page.as_uri())
            tab.click("#unfold")
            tab.click(f"#tree tbody tr:has-text('{SELECTED}') >> nth=0")
            tab.wait_for_timeout(500)
            picture = Image.open(io.BytesIO(tab.screenshot()))
            picture.save(IMAGES / f"report_{scheme}.webp", quality=82, method=6)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        shoot(report().to_html(Path(folder, "report.html"), "Llama, two layers"))
