"""Reports belong to the call that made them, and say what no graph holds."""

from __future__ import annotations

import gc

import pytest
from torch import nn

from nmcompile import NMError, NMWarning, Policy
from nmcompile.reason import Code, Reason
from nmcompile.report.history import History
from tests.report.samples import graph, site

FULL, DENSE = Policy.recipe("full"), Policy.recipe("dense")


class Owner:
    """Stands for what ``torch.compile`` returned."""


def modules(history: History) -> list[str]:
    return [s.module for s in history.last().sites]


def test_graphs_of_one_call_are_one_report() -> None:
    history, owner, other = History(), Owner(), Owner()
    history.add(owner, FULL, [graph(site("a"))])
    history.add(other, FULL, [graph(site("x"))])
    assert modules(history) == ["x"]
    history.add(owner, FULL, [graph(site("b")), graph(site("c"))])
    assert modules(history) == ["a", "b", "c"]


def test_another_policy_begins_a_report_of_its_own() -> None:
    history, owner = History(), Owner()
    history.add(owner, FULL, [graph(site("a"))])
    history.add(owner, DENSE, [graph(site("b"))])
    assert modules(history) == ["b"]
    assert Policy.loads(history.last().policy) == DENSE


def test_a_call_without_an_owner_stands_alone() -> None:
    history = History()
    for name in "ab":
        history.add(None, FULL, [graph(site(name))])
    assert modules(history) == ["b"]


def test_an_owner_that_is_gone_is_not_mistaken_for_a_new_one() -> None:
    history = History()
    for _ in range(20):  # each would else be likely to get the address of the one before
        history.add(Owner(), FULL, [graph(site())])
        assert len(history.last().sites) == 1


def test_of_a_call_that_is_gone_the_newest_reports_alone_are_kept() -> None:
    history = History()
    owners = [Owner() for _ in range(3)]  # Dynamo keeps them
    for number, owner in enumerate(owners):
        model = nn.Linear(2, 2)
        history.add(owner, FULL, [graph(site(str(number)))], whole=model, alive=model)
        del model
    gc.collect()
    assert history._compilations == {}
    assert modules(history) == ["2"]


def test_of_a_call_that_lives_all_reports_are_kept() -> None:
    history, model, owner = History(), nn.Linear(2, 2), Owner()
    for name in "ab":
        history.add(owner, FULL, [graph(site(name))], alive=model)
        other = nn.Linear(2, 2)
        history.add(Owner(), FULL, [graph(site())], alive=other)
        del other
    gc.collect()
    history.add(owner, FULL, [])
    assert modules(history) == ["a", "b"]


def test_before_the_first_and_after_a_reset_there_is_none() -> None:
    history = History()
    for _ in range(2):
        with pytest.raises(NMError, match="nothing has been compiled yet"):
            history.last()
        history.add(Owner(), FULL, [graph(site())])
        history.clear()


def test_a_model_is_judged_once_and_when_it_is_complete() -> None:
    history, owner = History(), Owner()
    history.add(owner, FULL, [graph(site())])  # more may follow: no warning, which is an error
    with pytest.warns(NMWarning, match="nothing is pruned of 2 products"):
        history.add(owner, FULL, [graph(site())], complete=True)
    history.add(owner, FULL, [graph(site())], complete=True)


def test_the_report_lists_the_layers_that_no_graph_holds_while_the_model_lives() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    history = History()
    history.add(None, FULL, [graph(site("0"))], whole=model)
    assert history.last().uncompiled == ("2",)
    del model
    gc.collect()
    assert history.last().uncompiled == ()


def test_a_note_is_kept_once_and_a_report_says_it_without_a_graph() -> None:
    history, owner, model = History(), Owner(), nn.Linear(4, 4)
    reason = Reason(Code.NO_GRAPH, "nothing of it was compiled")
    assert history.note(owner, FULL, reason, model)
    assert not history.note(owner, FULL, reason, model)
    report = history.last()
    assert (report.notes, report.graphs, report.uncompiled) == ((reason,), (), ("",))
    assert reason.text in str(report)


def test_a_remark_goes_to_the_newest_report() -> None:
    history, reason = History(), Reason(Code.DENSE_FRAME, "dense")
    history.remark(reason)
    history.add(Owner(), FULL, [graph(site())])
    history.remark(None)
    for _ in range(2):
        history.remark(reason)
    assert history.last().notes == (reason,)


def test_a_report_is_found_by_its_policy_object_or_by_a_module_with_an_equal_one() -> None:
    history, module = History(), nn.Linear(4, 4)
    first, second = FULL.model_copy(), FULL.model_copy()
    history.add(Owner(), first, [graph(site("a"))], whole=module)
    history.add(Owner(), DENSE, [graph(site("x"))])
    for policy, modules, names in (
        (first, [], ["a"]),
        (second, [], None),
        (second, [module], ["a"]),  # which runs what was compiled for the first
        (DENSE.model_copy(), [module], None),
    ):
        found = history.of(policy, modules)
        assert (found and [s.module for s in found.sites]) == names
