"""One rule of a policy: which products it matches, and what it prunes in them."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationInfo,
    field_validator,
)
from pydantic_core import CoreSchema

from nmcompile.gemm import KINDS_OF_ROLE, Op, OperandKind, Role
from nmcompile.masks.formats import Method, NMFormat
from nmcompile.policy.json_schema import complete_rule
from nmcompile.policy.model import PolicyModel
from nmcompile.policy.pattern import matcher
from nmcompile.policy.toml import Source

DType = Literal["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"]
Execution = Literal["simulate", "sparse", "auto"]
Fallback = Literal["dense", "simulate", "error"]
Backward = Literal["straight-through", "exact"]


class Site(Protocol):
    """What a rule sees of a product in one role.

    ``path`` and ``module_class`` are those of the innermost module; ``flops`` is the dense cost
    2*M*N*K, or None where a size is symbolic.
    """

    @property
    def path(self) -> str: ...
    @property
    def module_class(self) -> str: ...
    @property
    def op(self) -> Op: ...
    @property
    def role(self) -> Role: ...
    @property
    def dtype(self) -> str: ...
    @property
    def flops(self) -> float | None: ...


def _listed(value: object) -> object:
    # Not by min_length: a list whose only word is misspelt would be reported as empty, too.
    if isinstance(value, (list, tuple)) and not value:
        raise ValueError("an empty list matches nothing: write a word or remove the key")
    return (value,) if isinstance(value, str) else value


def _whole(value: object) -> object:
    # 40.0 is an integer to a JSON Schema.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _pattern(value: str | None) -> str | None:
    if value is not None:
        matcher(value)
    return value


def _matches(pattern: str | None, text: str) -> bool:
    return pattern is None or matcher(pattern)(text)


def _quoted(words: tuple[Role, ...] | tuple[OperandKind, ...]) -> str:
    return " and ".join(f'"{word}"' for word in words)


_Text = Annotated[str, Field(strict=True)]
_Format = Annotated[NMFormat, PlainValidator(NMFormat.parse), PlainSerializer(str)]
_FLOPs = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Refresh = Annotated[int, Field(strict=True, ge=1), BeforeValidator(_whole)]
Decay = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
REFRESH = "a whole number of steps, 1 or more, such as 40"
DECAY = "a finite number, zero or more, such as 6e-6"


@dataclass(frozen=True)
class MaskLife:
    """How long the mask of a weight is kept, and how what it leaves out decays.

    It is taken anew after every ``refresh`` steps of the optimizer, each of which adds
    ``decay`` times the masked elements of the weight to its gradient.
    """

    refresh: int
    decay: float


class Rule(PolicyModel):
    """One ``[[rule]]``: conditions, all of which must hold, and what to do with what matches.

    A condition that is None holds always, except as noted.

    Conditions:
        module: glob on the module's path as in ``model.named_modules()``, case-sensitive; ``*``
            crosses dots. ``"re:..."`` is a regular expression for the whole path, in the syntax of
            RE2 (which matches in linear time: no look-around, no back-references).
        class_: the same on the class name of the innermost module; ``class`` in TOML.
        op: None is linear, conv and grouped for a rule that prunes, every op for a dense rule.
        role: None is every role whose product has the pruned operand, or all for a dense rule.
        dtype: ``"float16"``, ``"bfloat16"``, ``"float32"``, ``"float64"``, ``"float8_e4m3fn"`` or
            ``"float8_e5m2"``: of the left operand.
        min_flops: least dense FLOPs, 2*M*N*K; a product of unknown size counts as large enough.

    Decision:
        dense: nothing is pruned; excludes every key below.
        prune, format: the operand, and N:M along the reduction dimension.
        method: by default MSE for activations and weights, MVUE for gradients.
        backward: ``"exact"`` gives the gradient of the pruned product instead of a
            straight-through one; in fprop, for MSE and transposable masks.
        refresh, decay: of a weight's mask, by MSE or transposable (``MaskLife``); None is the
            policy's. Decay is of the mask of the forward product.
        execution, fallback: None is the policy's.

    ``op``, ``role`` and ``dtype`` accept one word or a list.

    Raises:
        PolicyError: a line for every problem.
    """

    _place: ClassVar[str] = "below a [[rule]]"

    # Conditions stand above `dense`, and what is decided below it; `conditions` relies on it.
    module: _Text | None = Field(
        default=None,
        description='a glob in quotes, such as "*.mlp.*", or "re:" and a regular expression',
    )
    class_: _Text | None = Field(
        default=None,
        alias="class",
        description='a glob on a class name in quotes, such as "Linear"',
    )
    op: Annotated[tuple[Op, ...], BeforeValidator(_listed)] | None = None
    role: Annotated[tuple[Role, ...], BeforeValidator(_listed)] | None = None
    dtype: Annotated[tuple[DType, ...], BeforeValidator(_listed)] | None = None
    min_flops: _FLOPs | None = Field(
        default=None, description="a finite number of FLOPs, zero or more, such as 1e9"
    )
    # A check sees the fields above its own, so the order of these is that of the checks.
    dense: bool = Field(default=False, strict=True, description="true or false, without quotes")
    prune: OperandKind | None = None
    format: _Format | None = Field(
        default=None, description='an N:M format in quotes, such as "2:4"'
    )
    method: Method | None = None
    backward: Backward = "straight-through"
    refresh: Refresh | None = Field(default=None, description=REFRESH)
    decay: Decay | None = Field(default=None, description=DECAY)
    execution: Execution | None = None
    fallback: Fallback | None = None
    _source: Source = PrivateAttr(default=Source())

    # Declared again, since a type checker would else want tuples and enums where words will do.
    def __init__(self, /, **keys: Any) -> None:
        super().__init__(**keys)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler(core_schema)
        complete_rule(handler.resolve_ref_schema(schema))
        return schema

    _check_pattern = field_validator("module", "class_")(_pattern)

    @field_validator("prune")
    @classmethod
    def _check_prune(cls, prune: OperandKind | None, info: ValidationInfo) -> OperandKind | None:
        known = info.data  # a field that was itself wrong is absent
        if prune is None:
            if known.get("dense") is False:
                raise ValueError(
                    "the rule does nothing: write prune and format, such as "
                    'prune = "activation" and format = "2:4", or dense = true'
                )
            return None
        if known.get("dense"):
            raise ValueError("the rule also says dense = true: remove one of the two")
        for role in known.get("role") or ():
            if prune not in KINDS_OF_ROLE[role]:
                raise ValueError(
                    f'"{prune}" is no operand of {role}, which multiplies '
                    f"{_quoted(KINDS_OF_ROLE[role])}: write one of these, "
                    f"or role = {_quoted(_roles_of(prune)).replace(' and ', ' or ')}"
                )
        return prune

    @field_validator("*")
    @classmethod
    def _check_not_dense(cls, value: object, info: ValidationInfo) -> object:
        # "prune" is known to the fields below it alone, and to none of them when a contradiction
        # with dense = true has been reported already.
        if info.data.get("dense") and "prune" in info.data:
            default = cls.model_fields[str(info.field_name)].default
            if value not in (None, default):
                raise ValueError("has no meaning in a rule with dense = true: remove it")
        return value

    @field_validator("format")
    @classmethod
    def _check_format(cls, value: NMFormat | None, info: ValidationInfo) -> NMFormat | None:
        if value is None and info.data.get("prune") is not None:
            raise ValueError('is missing: a rule that prunes needs one, such as format = "2:4"')
        return value

    @field_validator("method")
    @classmethod
    def _check_method(cls, method: Method | None, info: ValidationInfo) -> Method | None:
        prune, form = info.data.get("prune"), info.data.get("format")
        if prune is None:
            return method
        if method is None:
            return Method.MVUE if prune is OperandKind.GRADIENT else Method.MSE
        if method is Method.APPROX_MVUE and form not in (None, NMFormat(2, 4)):
            raise ValueError(f'"approx-mvue" exists for "2:4" only, not "{form}": write "mvue"')
        if method is Method.TRANSPOSABLE and prune is not OperandKind.WEIGHT:
            raise ValueError(f'"transposable" is for prune = "weight", not "{prune}"')
        if method is Method.TRANSPOSABLE and form is not None and form.m not in (2, 4):
            raise ValueError(
                f'"transposable" needs blocks of 2 or 4, such as format = "2:4", not "{form}"'
            )
        return method

    @field_validator("backward")
    @classmethod
    def _check_backward(cls, backward: Backward, info: ValidationInfo) -> Backward:
        if backward == _STRAIGHT or info.data.get("prune") is None:
            return backward
        wrong = []
        if "role" in info.data and set(info.data["role"] or ()) != {Role.FPROP}:
            wrong.append('role = "fprop" alone')
        method = info.data.get("method")
        if method not in (None, Method.MSE, Method.TRANSPOSABLE):
            wrong.append(f'method = "mse" or "transposable" ("{method}" is random)')
        if wrong:
            raise ValueError(f'"exact" needs {" and ".join(wrong)}')
        return backward

    @field_validator("refresh", "decay")
    @classmethod
    def _check_life(cls, value: float | None, info: ValidationInfo) -> float | None:
        prune, method = info.data.get("prune"), info.data.get("method")
        if value is None or prune is None:
            return value
        if prune is not OperandKind.WEIGHT:
            raise ValueError(f'is of a weight\'s mask, and the rule prunes "{prune}": remove it')
        if method is not None and method.random:
            raise ValueError(
                f'needs a mask that can be kept, and "{method}" is random: '
                'write method = "mse" or "transposable"'
            )
        roles = info.data.get("role") or (Role.FPROP,)
        if info.field_name == "decay" and Role.FPROP not in roles:
            raise ValueError('is of the mask of the forward product: add "fprop" to role')
        return value

    @property
    def ops(self) -> tuple[Op, ...]:
        """The ops that match, ``None`` resolved."""
        return self.op or (tuple(Op) if self.dense else _LAYERS)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that match, ``None`` resolved."""
        return self.role or _roles_of(self.prune)

    @property
    def conditions(self) -> Hashable:
        """All conditions, ``None`` resolved. Rules in which they are equal match the same sites."""
        names = itertools.takewhile(lambda name: name != "dense", type(self).model_fields)
        values = {name: getattr(self, name) for name in names}
        values |= {"op": self.ops, "role": self.roles}
        return tuple(frozenset(v) if isinstance(v, tuple) else v for v in values.values())

    @property
    def recipe(self) -> str | None:
        """The built-in recipe that the rule is of; None for a user's own rule."""
        return self._source.recipe

    @property
    def origin(self) -> str:
        """The file, ``"recipe <name>"`` or ``"<python>"``."""
        return self._source.origin

    @property
    def number(self) -> int | None:
        """The 1-based place in its policy; None before it is in one."""
        return self._source.number

    @property
    def line(self) -> int | None:
        """The 1-based line of the rule's header in its file; None where there is none."""
        return self._source.line

    @property
    def label(self) -> str:
        """Where the rule was written, such as ``"policy.toml:12 (rule 2)"``."""
        return self._source.label

    def matches(self, site: Site) -> bool:
        """Whether every condition holds for ``site``."""
        return (
            site.role in self.roles
            and site.op in self.ops
            and (self.dtype is None or site.dtype in self.dtype)
            and (self.min_flops is None or site.flops is None or site.flops >= self.min_flops)
            and self.names_class(site.module_class)
            and self.names_module(site.path)
        )

    def names_module(self, path: str) -> bool:
        """Whether the condition on the module's path holds."""
        return _matches(self.module, path)

    def names_class(self, name: str) -> bool:
        """Whether the condition on the module's class holds."""
        return _matches(self.class_, name)

    def at(self, source: Source) -> Rule:
        """The same rule, written somewhere else."""
        copy = self.model_copy()
        copy._source = source
        return copy


_STRAIGHT = "straight-through"
#: Products with a weight.
_LAYERS = (Op.LINEAR, Op.CONV, Op.GROUPED)


def _roles_of(prune: OperandKind | None) -> tuple[Role, ...]:
    return tuple(role for role in Role if prune is None or prune in KINDS_OF_ROLE[role])
