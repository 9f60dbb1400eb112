"""A kernel's spec: its identity, and how it is named."""

from __future__ import annotations

from nmcompile.codegen.kernel_spec import KernelSpec
from tests.kernels.specs import all_specs


def test_a_spec_survives_json_and_its_digest_covers_all_of_it() -> None:
    specs = list(dict.fromkeys(all_specs()))
    assert [KernelSpec.from_json(s.to_json()) for s in specs] == specs
    assert len({s.digest for s in specs}) == len(specs)
