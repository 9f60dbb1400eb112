"""Tiny models of many architectures, each compiled, checked against eager mode and trained.

python -m benchmarks.zoo              # all, into results/zoo.csv and docs/zoo.md
python -m benchmarks.zoo llama gpt2   # some, shown only
"""

from __future__ import annotations

from benchmarks.zoo import float8, functions, language, nested, recurrent, speech, vision
from benchmarks.zoo.entry import Entry

ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for module in (language, vision, speech, functions, nested, recurrent, float8)
    for entry in module.ENTRIES
}
