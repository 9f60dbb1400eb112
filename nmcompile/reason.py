"""Why a product is treated as it is: a code, to filter by, and a sentence, to read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """What kind of reason it is; the words of a report's JSON."""

    # Dense by the policy.
    NO_RULE = "no-rule"
    MATMUL_NOT_NAMED = "matmul-not-named"
    RULE_DENSE = "rule-dense"
    NO_SUCH_OPERAND = "no-such-operand"
    KEEPS_ALL = "keeps-all"
    # Dense, since no mask fits.
    DTYPE = "dtype"
    NO_CAST = "no-cast"
    WINDOWED = "windowed"
    TOO_SHORT = "too-short"
    EXACT_NEEDS_WEIGHT = "exact-needs-weight"
    NOT_KEPT = "not-kept"
    # What happens where a product cannot run sparse, or need not.
    DECLINED = "declined"
    FALLBACK = "fallback"
    AUTO_SIMULATES = "auto-simulates"
    # Why it cannot run sparse.
    NO_DEVICE = "no-device"
    SPARSE_FORMAT = "sparse-format"
    SPARSE_DTYPE = "sparse-dtype"
    CONVOLUTION = "convolution"
    EXACT_CONVOLUTION = "exact-convolution"
    CHANNELS_LAST = "channels-last"
    BATCHED = "batched"
    NOT_PLAIN = "not-plain"
    UNKNOWN_SPEED = "unknown-speed"
    UNKNOWN_SIZE = "unknown-size"
    NO_GAIN = "no-gain"
    # How it runs sparse.
    DECODED = "decoded"
    GAIN = "gain"
    # What backward = "exact" did.
    MASKED_RESULT = "masked-result"
    READS_PRUNED = "reads-pruned"
    READS_UNPRUNED = "reads-unpruned"
    # How long the mask of a weight holds.
    KEPT = "kept"
    NO_DECAY = "no-decay"
    # What an 8-bit operand's mask meets.
    FIXED_SCALE = "fixed-scale"
    # What made a role a guess, so that the product is dense.
    DOUBLE_GRADIENT = "double-gradient"
    NO_FORWARD = "no-forward"
    # What a graph that another one calls does not know.
    IN_SUBGRAPH = "in-subgraph"
    LAYERS_UNKNOWN = "layers-unknown"
    IN_ENGINE = "in-engine"
    IN_FUNCTION = "in-function"
    IN_OPTIMIZER = "in-optimizer"
    TAKES_DERIVATIVES = "takes-derivatives"
    PARAMETER_GRADIENT = "parameter-gradient"
    BACKWARD_VALUE = "backward-value"
    # What multiplies and is no product of the graph.
    FUSED_ATTENTION = "fused-attention"
    GROUPED = "grouped"
    EIGHT_BIT = "eight-bit"
    INTEGER = "integer"
    QUANTISED = "quantised"
    VECTOR = "vector"
    RECURRENT = "recurrent"
    BILINEAR = "bilinear"
    DECOMPOSED = "decomposed"
    FUSED_ACTIVATION = "fused-activation"
    USER_KERNEL = "user-kernel"
    FUSED_LAYER = "fused-layer"
    SOLVER = "solver"
    SPARSE_OPERAND = "sparse-operand"
    CUSTOM_OPERATOR = "custom-operator"
    # What happened to all of a model.
    NO_GRAPH = "no-graph"
    FAILED = "failed"
    DENSE_FRAME = "dense-frame"
    SOME_EAGER = "some-eager"
    RECOMPILE_LIMIT = "recompile-limit"


@dataclass(frozen=True)
class Reason:
    """``text`` is a sentence without its full stop; nothing may depend on its words."""

    code: Code
    text: str

    def __str__(self) -> str:
        return self.text


def sentence(reasons: Iterable[Reason]) -> str:
    """Several reasons as one text."""
    return "; ".join(map(str, reasons))
