"""What each kind of pruning costs: ``python -m benchmarks.accuracy digits|fashion|text|plot``.

arms            what is pruned, and when
studies         what is compared: data, networks, settings, metrics
data, images    Python's standard library, scikit-learn's digits, folders of images
models          a ResNet, a ViT and a GPT: ordinary PyTorch
training        one arm: a network trained under one policy or schedule, once per seed
gradients       bias and noise of pruned gradients
tuned           policies by measurement, made on the way
jobs, workers   what is left to train, and the processes that do it
results         the CSV files: runs, curves, gradients
summary, claims tables, for the terminal and as Markdown
plots, pareto, gradient_plots   the pictures (drawing: what they share)
render          all pages and pictures from the CSV files
"""

from __future__ import annotations
