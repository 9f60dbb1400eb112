"""Which operand of which product is pruned, and how: rules, the files they are read from, recipes.

It needs neither PyTorch nor Inductor.
"""

from __future__ import annotations

from nmcompile.policy.policy import Policy
from nmcompile.policy.rule import Rule, Site
from nmcompile.policy.toml import recipe_names

__all__ = ["Policy", "Rule", "Site", "recipe_names"]
