"""Which operand of which matrix product is pruned, and how: typed rules, as data.

A policy is an ordered list of rules. The first rule that matches a product in a role decides it;
a product that no rule matches stays dense. Policies are read from TOML, never evaluated as code.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import tomli_w
from pydantic import Field, GetJsonSchemaHandler, field_validator
from pydantic_core import CoreSchema

from nmcompile.errors import NMWarning, PolicyError, Problem, first, nearest, shown
from nmcompile.gemm import OperandKind, Role
from nmcompile.policy.json_schema import complete_policy
from nmcompile.policy.model import PolicyModel, keys_of, show, unknown_key, wrong_value
from nmcompile.policy.rule import (
    DECAY,
    REFRESH,
    Decay,
    Execution,
    Fallback,
    MaskLife,
    Refresh,
    Rule,
    Site,
)
from nmcompile.policy.toml import (
    RECIPES,
    Source,
    locate,
    parse_toml,
    read_text,
    recipe_text,
    rule_lines,
)

DEFAULT_RECIPE = "full"
#: Every product of a model is held against every rule; a pattern says what many rules would.
MAX_RULES = 2000


class Policy(PolicyModel):
    """An ordered list of rules and how to execute what they decide. Equality is by content.

    Attributes:
        schema_: version of the file format (``schema`` in TOML).
        extends: a built-in recipe whose rules come after ``rules``; only its rules count.
        execution: ``"simulate"`` masks and multiplies densely, ``"sparse"`` uses sparse tensor
            cores, ``"auto"`` is sparse on a capable GPU and else simulated.
        fallback: what to do where sparse execution is impossible or gains too little.
        margin: the least gain, dense over sparse time, for which a product runs sparse.
        refresh, decay: of the masks of weights (``MaskLife``), for all rules that prune weights by
            MSE or transposable masks and do not say it themselves; None is 1 and 0.
        rules: the policy's own rules (``rule`` in TOML).

    Raises:
        PolicyError: a line for every problem.
    """

    _place: ClassVar[str] = "above the first [[rule]]"

    schema_: Literal[1] = Field(default=1, alias="schema", description="1")
    extends: str | None = Field(default=None, description="the name of a built-in recipe in quotes")
    execution: Execution = "auto"
    fallback: Fallback = "dense"
    margin: float = Field(
        default=1.05,
        strict=True,
        gt=0,
        allow_inf_nan=False,
        description="the least gain for which a product runs sparse, such as 1.05",
    )
    refresh: Refresh | None = Field(default=None, description=REFRESH)
    decay: Decay | None = Field(default=None, description=DECAY)
    rules: tuple[Rule, ...] = Field(
        default=(),
        alias="rule",
        description="rules, each below a [[rule]] header (in Python: Rule objects or mappings)",
    )

    # Declared again, as in Rule: else a type checker knows `rules` by its TOML name alone.
    def __init__(self, /, **keys: Any) -> None:
        super().__init__(**keys)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler(core_schema)
        complete_policy(handler.resolve_ref_schema(schema), RECIPES, MAX_RULES)
        return schema

    @field_validator("extends")
    @classmethod
    def _check_extends(cls, extends: str | None) -> str | None:
        if extends is not None and extends not in RECIPES:
            raise ValueError(
                f"recipe {shown(extends)} does not exist: {nearest(extends.lower(), RECIPES)}"
            )
        return extends

    @field_validator("rules", mode="before")
    @classmethod
    def _check_number(cls, rules: object) -> object:
        if isinstance(rules, (list, tuple)) and len(rules) > MAX_RULES:
            raise ValueError(_too_many(rules))
        return rules

    @field_validator("rules")
    @classmethod
    def _number(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        cls._check_number(rules)  # of what had no length before
        # A rule that was read from a file knows its place already.
        return tuple(
            rule.at(Source(number=number)) if rule.number is None else rule
            for number, rule in enumerate(rules, 1)
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Policy:
        """Read a TOML file. Raises ``PolicyError``, which lists every problem of the file."""
        if not isinstance(path, (str, os.PathLike)):
            raise PolicyError(f"the path of a policy file is text, not {shown(path)}")
        name = os.fsdecode(path)
        return cls.loads(read_text(Path(name)), origin=name)

    @classmethod
    def loads(cls, text: str, origin: str = "<string>") -> Policy:
        """Read TOML text; ``origin`` names it in messages and reports.

        Raises:
            PolicyError: one that lists every problem of the text.
        """
        if not isinstance(text, str):
            raise PolicyError(f"{origin}: the text of a policy is a str, not {shown(text)}")
        table = parse_toml(text, origin)
        problem = _schema_problem(table)
        if problem and "schema" in table:
            # The keys of another version would all be reported as mistakes.
            raise PolicyError(f"{origin}: {problem.text}", [locate(problem, text, None)])
        return cls._from_table(table, origin, text)

    @classmethod
    def recipe(cls, name: str) -> Policy:
        """A built-in recipe. Raises ``PolicyError`` with the nearest name for an unknown one."""
        return _recipe(str(name))

    @classmethod
    def resolve(cls, value: str | os.PathLike[str] | Policy | Mapping[str, Any] | None) -> Policy:
        """The policy that a user means.

        None is the recipe ``"full"``. A string is a recipe's name or else the path of a file. A
        mapping has the keys of the file; its ``schema`` may be left out.

        Raises:
            PolicyError: for anything else, an unknown name and a policy with a problem.
        """
        if value is None:
            return cls.recipe(DEFAULT_RECIPE)
        if isinstance(value, Policy):
            return value
        if isinstance(value, Mapping):
            return cls._from_table(value, "<python>")
        if isinstance(value, str):
            if value in RECIPES:
                return cls.recipe(value)
            separators = {os.sep, os.altsep or os.sep, "/"}
            is_path = value.endswith(".toml") or any(s in value for s in separators)
            if not is_path and not os.path.isfile(value):
                raise PolicyError(
                    f"{shown(value)} is neither a recipe nor a file: "
                    f"{nearest(value.lower(), RECIPES)} "
                    "(the path of a policy file ends in .toml)"
                )
        elif not isinstance(value, os.PathLike):
            raise PolicyError(
                f"a policy is a recipe's name, a path, a Policy or a mapping, not {shown(value)}"
            )
        return cls.load(value)

    @classmethod
    def _from_table(
        cls,
        table: Mapping[str, Any],
        origin: str,
        text: str | None = None,
        recipe: str | None = None,
    ) -> Policy:
        """The policy that a table holds; ``text`` is the file that it was read from."""
        entries = table.get("rule", ())
        entries = entries if isinstance(entries, (list, tuple)) else ()
        if len(entries) > MAX_RULES:
            raise PolicyError(f"{origin}: {_too_many(entries)}")
        lines = rule_lines(text, len(entries)) if text is not None else (None,) * len(entries)
        named = text is not None or "schema" in table  # it may be left out in Python
        version = _schema_problem(table) if named else None
        wrong = [(origin, p) for p in (*filter(None, [version]), *_file_problems(table))]
        cause: PolicyError | None = None
        rules: list[Rule] = []
        for number, (entry, line) in enumerate(zip(entries, lines, strict=True), 1):
            source = Source(origin, number, line, recipe)
            try:
                rules.append(_read_rule(entry).at(source))
            except PolicyError as error:
                cause = error
                wrong += (
                    (source.label, replace(p, rule=number, line=line)) for p in error.problems
                )
        keys = {k: table[k] for k in keys_of(cls) if k in table and k not in ("rule", "schema")}
        try:
            policy = cls(rules=tuple(rules), **keys)
        except PolicyError as error:
            wrong += ((origin, p) for p in error.problems)
            cause = error
        if wrong:
            head = f"{origin}: {len(wrong):,} problems\n  " if len(wrong) > 1 else ""
            lines_of = first([f"{where}: {p.text}" for where, p in wrong], " problems")
            found = [locate(p, text or "", p.line) for _, p in wrong[: len(lines_of)]]
            if len(lines_of) < len(wrong):
                found[-1] = Problem(lines_of[-1])
            raise PolicyError(head + "\n  ".join(lines_of), found) from cause
        _warn_of_shadowed(rules)
        _warn_of_no_masks(policy, origin)
        return policy

    def to_toml(self) -> str:
        """The policy as a TOML file; ``Policy.loads`` of it equals the policy."""
        head = self.model_dump(by_alias=True, exclude_none=True, exclude={"rules"})
        parts = [tomli_w.dumps(head)]
        for rule in self.rules:
            keys = rule.model_dump(mode="json", by_alias=True, exclude_defaults=True)
            # tomli_w would write short rules as one inline array, which has no lines to report.
            parts.append("[[rule]]\n" + tomli_w.dumps({k: _unlisted(v) for k, v in keys.items()}))
        return "\n".join(parts)

    @property
    def all_rules(self) -> tuple[Rule, ...]:
        """The policy's own rules, then those of the recipe that it extends."""
        return self.rules + (_recipe(self.extends).all_rules if self.extends else ())

    def decide(self, site: Site) -> Rule | None:
        """The first rule that matches ``site``; None leaves it dense."""
        return next((rule for rule in self.all_rules if rule.matches(site)), None)

    def life_of(self, rule: Rule) -> MaskLife | None:
        """How long a mask of this rule is kept; None: it is taken in each forward."""
        if rule.prune is not OperandKind.WEIGHT or (rule.method and rule.method.random):
            return None
        refresh = self.refresh if rule.refresh is None else rule.refresh
        decay = self.decay if rule.decay is None else rule.decay
        life = MaskLife(refresh or 1, (decay or 0.0) if Role.FPROP in rule.roles else 0.0)
        return None if life == MaskLife(1, 0.0) else life

    @property
    def keeps_masks(self) -> bool:
        """Whether the masks of any rule are kept."""
        return any(self.life_of(rule) for rule in self.all_rules)

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of all that affects behaviour or a report.

        That is every rule in effect with the place where it was written, ``execution``,
        ``fallback``, ``margin``, ``refresh`` and ``decay``.
        """
        # Of the recipe that is extended, only the rules count, and they are in `all_rules`.
        head = self.model_dump(mode="json", exclude={"schema_", "extends", "rules"})
        rules = [
            (rule.model_dump(mode="json"), rule.origin, rule.number, rule.line)
            for rule in self.all_rules
        ]
        content = json.dumps([*head.values(), rules], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


@functools.cache
def _recipe(name: str) -> Policy:
    origin = f"recipe {name}"
    return Policy._from_table(parse_toml(recipe_text(name), origin), origin, recipe=name)


def _file_problems(table: Mapping[Any, object]) -> Iterable[Problem]:
    """One line for each problem of the top level that needs no knowledge of the rules."""
    for key in table:
        if key not in keys_of(Policy):
            yield Problem(unknown_key(Policy, str(key)), str(key))
    rules = table.get("rule", [])
    if isinstance(rules, Mapping):
        text = "[rule] is a single table: write [[rule]], with two brackets, above every rule"
        yield Problem(text, "rule")
    elif not isinstance(rules, (list, tuple)):
        yield Problem(wrong_value(Policy, "rule", rules), "rule")


def _schema_problem(table: Mapping[Any, object]) -> Problem | None:
    """One if the schema's version is missing or not 1."""
    if "schema" not in table:
        return Problem("schema is missing: write schema = 1 on the first line")
    version = table["schema"]
    if isinstance(version, bool) or version != 1:  # 1.0 is 1 to a JSON Schema as well
        text = f"schema = {show(version)}: this nmcompile reads schema 1; write schema = 1"
        return Problem(text, "schema")
    return None


def _too_many(rules: Sequence[object]) -> str:
    return f"{len(rules):,} rules: at most {MAX_RULES:,} are read; let patterns name many modules"


def _read_rule(entry: object) -> Rule:
    if isinstance(entry, Rule):
        return entry
    if not isinstance(entry, Mapping):
        raise PolicyError(f"{shown(entry)} is not a rule: write its keys below a [[rule]] header")
    for name, field in Rule.model_fields.items():
        if field.alias and name in entry:  # a name in Python alone
            raise PolicyError(unknown_key(Rule, name), [Problem(unknown_key(Rule, name), name)])
    return Rule(**{str(key): value for key, value in entry.items()})


def _unlisted(value: object) -> object:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _warn_of_no_masks(policy: Policy, origin: str) -> None:
    asked = {"refresh": policy.refresh or 1, "decay": policy.decay or 0}
    named = [f"{key} = {value:g}" for key, value in asked.items() if value != (key == "refresh")]
    if named and not policy.keeps_masks:
        warnings.warn(
            f"{origin}: {' and '.join(named)} decides nothing: no rule keeps the mask of a weight, "
            'such as those of extends = "weights"',
            NMWarning,
            stacklevel=2,
        )


def _warn_of_shadowed(rules: Sequence[Rule]) -> None:
    earlier: dict[Hashable, Rule] = {}
    found = []
    for rule in rules:
        twin = earlier.setdefault(rule.conditions, rule)
        if twin is not rule:
            why = f"{twin.label} has the same conditions and comes first"
            found.append(f"{rule.label} decides nothing: {why}")
    for text in first(found, " such rules"):
        warnings.warn(text, NMWarning, stacklevel=2)
