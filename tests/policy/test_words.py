"""Other names of what a policy has words for, and that each leads to a word that is valid."""

from __future__ import annotations

import pytest

from nmcompile.policy import Policy, Rule
from nmcompile.policy import words as module
from nmcompile.policy.model import keys_of
from nmcompile.policy.words import meant, meant_key

ROLES = ("fprop", "dgrad", "wgrad")


@pytest.mark.parametrize(
    ("word", "valid"),
    [
        ("forward", "fprop"),
        ("Forward ", "fprop"),
        ("dX", "dgrad"),
        ("weight-gradient", "wgrad"),
        ("grad_weight", "wgrad"),
        ("update", "wgrad"),
        ("wgard", "wgrad"),
    ],
)
def test_the_word_that_is_meant(word: str, valid: str) -> None:
    assert meant("role", word, ROLES) == f"did you mean {valid!r}?"


def test_a_word_that_may_mean_two() -> None:
    both = "did you mean 'dgrad', the gradient of the input, or 'wgrad', that of the weight?"
    assert meant("role", "backward", ROLES) == both


def test_other_words_get_all_of_them() -> None:
    assert meant("role", "xyz", ROLES) == "known: dgrad, fprop, wgrad"
    assert meant("no such key", "forward", ["a"]) == "known: a"
    assert meant_key("path", ["module"]) == "did you mean 'module'?"
    assert meant_key("path", ["other"]) == "known: other"


def test_every_word_leads_to_a_valid_one_and_is_none_itself() -> None:
    for key, others in module._MEANT.items():
        (valid,) = {k.words for t in (Rule, Policy) if (k := keys_of(t).get(key)) and k.words}
        assert {word.split(", ")[0] for word in others.values()} <= set(valid), key
        assert not set(others) & set(valid), key
    keys = {*keys_of(Rule), *keys_of(Policy)}
    assert set(module._KEYS.values()) <= keys
    assert not set(module._KEYS) & keys
