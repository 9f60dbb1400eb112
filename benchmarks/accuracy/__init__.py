"""What each kind of pruning costs: ``python -m benchmarks.accuracy digits|text|all|plot``.

studies     what is compared: arms, networks, settings, metrics
data        digits and Python's standard library, from what is installed anyway
models      a ResNet, a ViT and a GPT: ordinary PyTorch
training    one arm: a network trained under one policy, once per seed
workers     the arms side by side in processes
results     the CSV files: runs and curves
summary     tables, for the terminal and as Markdown
plots       loss curves and validation
"""

from __future__ import annotations
