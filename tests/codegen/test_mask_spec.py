"""What tells mask kernels apart."""

from __future__ import annotations

from nmcompile.codegen.mask_spec import MaskSpec
from tests.kernels.specs import spec

KIND = MaskSpec(n=2, m=4, method="mvue", dtype="bfloat16", mask=False, lie="runs", ranks=(0, 1))


def test_a_kernel_that_computes_its_operand_is_named_after_it_and_reads_other_tensors() -> None:
    computed = spec("silu_mul_bias", dims=())
    fused = KIND.model_copy(update={"computed": computed})
    assert (KIND.name, fused.name) == ("prune_runs_mvue_2_4", "prune_runs_mvue_2_4_add")
    assert KIND.inputs == ["x"]
    assert fused.inputs == ["gate", "up", "bias", "dense"]
    alone = spec("silu_mul_bias", dims=(), keep_dense=False)
    assert KIND.model_copy(update={"computed": alone}).inputs == ["gate", "up", "bias"]
    assert len({KIND.digest, fused.digest, KIND.model_copy(update={"mask": True}).digest}) == 3


def test_a_spec_is_its_json() -> None:
    for kind in (KIND, KIND.model_copy(update={"computed": spec("gelu_tanh", dims=())})):
        assert MaskSpec.model_validate_json(kind.to_json()) == kind
