"""Words that people write for those of a policy: other names of the same thing in the literature.

Spelling mistakes need no list (``errors.nearest``).
"""

from __future__ import annotations

from collections.abc import Iterable

from nmcompile.errors import nearest

_BOTH = "the gradient of the input, or 'wgrad', that of the weight"
_DTYPES = {
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "float": "float32",
    "fp32": "float32",
    "double": "float64",
    "fp64": "float64",
}
#: For each key: the valid word for one that is none; a word may be followed by an explanation.
_MEANT: dict[str, dict[str, str]] = {
    "role": {
        **dict.fromkeys(("forward", "fwd", "fp", "y", "output", "inference"), "fprop"),
        **dict.fromkeys(("backward", "bwd", "bw", "gradient", "gradients"), f"dgrad, {_BOTH}"),
        **dict.fromkeys(("bprop", "dx", "dinput", "grad_input", "input_gradient"), "dgrad"),
        **dict.fromkeys(("data_gradient", "dactivation", "activation_gradient"), "dgrad"),
        **dict.fromkeys(("dw", "dweight", "grad_weight", "weight_gradient", "update"), "wgrad"),
        **dict.fromkeys(("wgrads", "weight_grad", "gradw", "weight_update"), "wgrad"),
    },
    "prune": {
        **dict.fromkeys(("input", "inputs", "x", "act", "acts", "features"), "activation"),
        **dict.fromkeys(("w", "kernel", "parameter", "parameters", "filter"), "weight"),
        **dict.fromkeys(("grad", "dy", "dout", "grad_output", "output_gradient"), "gradient"),
        **dict.fromkeys(("error", "delta", "tangent", "neural_gradient"), "gradient"),
    },
    "op": {
        **dict.fromkeys(("dense", "fc", "gemm", "mm", "addmm", "projection"), "linear"),
        **dict.fromkeys(("bmm", "baddbmm", "einsum", "attention", "sdpa"), "matmul"),
        **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "cnn"), "conv"),
    },
    "dtype": {**_DTYPES, **{f"torch.{word}": valid for word, valid in _DTYPES.items()}},
    "method": {
        **dict.fromkeys(("magnitude", "topk", "largest", "l1", "l2", "deterministic"), "mse"),
        **dict.fromkeys(("random", "unbiased", "stochastic", "exact_mvue"), "mvue"),
        **dict.fromkeys(("approx", "approximate", "approximate_mvue"), "approx-mvue"),
        **dict.fromkeys(("bernoulli", "dropout"), "uniform"),
        **dict.fromkeys(("transpose", "transposed", "bidirectional", "both"), "transposable"),
    },
    "execution": {
        **dict.fromkeys(("simulated", "emulate", "fake", "mask", "masked"), "simulate"),
        **dict.fromkeys(("cusparselt", "cutlass", "native", "hardware", "fast"), "sparse"),
        **dict.fromkeys(("default", "automatic"), "auto"),
    },
    "fallback": {
        **dict.fromkeys(("raise", "strict", "fail"), "error"),
        **dict.fromkeys(("simulated", "emulate", "mask"), "simulate"),
        **dict.fromkeys(("none", "skip", "off"), "dense"),
    },
    "backward": {
        **dict.fromkeys(("ste", "straight_through", "approximate"), "straight-through"),
        **dict.fromkeys(("true", "masked", "full"), "exact"),
    },
}
_KEYS = {
    **dict.fromkeys(("path", "name", "layer", "layers", "glob", "pattern", "where"), "module"),
    **dict.fromkeys(("class_", "cls", "type", "module_class", "module_type"), "class"),
    **dict.fromkeys(("operation", "operator"), "op"),
    **dict.fromkeys(("product", "pass", "phase", "direction", "gemm"), "role"),
    **dict.fromkeys(("flops", "size", "min_size", "minimum_flops"), "min_flops"),
    **dict.fromkeys(("operand", "what", "tensor", "target"), "prune"),
    **dict.fromkeys(("sparsity", "nm", "n_m", "ratio", "density"), "format"),
    **dict.fromkeys(("algorithm", "estimator", "how"), "method"),
    **dict.fromkeys(("gradient", "ste"), "backward"),
    **dict.fromkeys(("base", "recipe", "inherits", "inherit", "parent"), "extends"),
    **dict.fromkeys(("version", "schema_version", "schema_"), "schema"),
    **dict.fromkeys(("every", "steps", "interval", "update_every", "freq", "keep"), "refresh"),
    **dict.fromkeys(("masked_decay", "sr_ste", "srste", "lambda", "weight_decay"), "decay"),
    **dict.fromkeys(("speedup", "min_gain", "gain", "threshold"), "margin"),
}


def meant(key: str, word: str, words: Iterable[str]) -> str:
    """A fragment with the valid word that was meant by another one as the value of ``key``."""
    return _fragment(_MEANT.get(key, {}), word, words)


def meant_key(word: str, keys: Iterable[str]) -> str:
    """The same for the name of a key."""
    return _fragment(_KEYS, word, keys)


def _fragment(others: dict[str, str], word: str, words: Iterable[str]) -> str:
    word, known = word.lower().strip(), list(words)
    valid, _, remark = others.get(word.replace("-", "_").replace(" ", "_"), "").partition(", ")
    if valid in known:
        return f"did you mean {valid!r}{f', {remark}' if remark else ''}?"
    return nearest(word, known)
