"""Our passes beside the user's own, and what the keys of Inductor's caches cover."""

from __future__ import annotations

import pytest
import torch
from torch._inductor.custom_graph_pass import CustomGraphPass

from tests.setups.steps import compiled, density, identity


class Counting(CustomGraphPass):
    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.Graph) -> None:
        self.graphs += 1

    def uuid(self) -> str:
        return "counting"


@pytest.mark.parametrize("where", ["option", "config"])
def test_the_users_own_joint_pass_is_kept(where: str) -> None:
    own, x = Counting(), torch.randn(8, 16)
    if where == "option":
        y = compiled(identity(), options={"joint_custom_pre_pass": own})(x)
    else:
        with torch._inductor.config.patch(joint_custom_pre_pass=own, force_disable_caches=True):
            y = compiled(identity())(x)
    assert own.graphs == 1
    assert density(y) == 0.5
