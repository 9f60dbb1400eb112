"""Our passes beside the user's own, and what the keys of Inductor's caches cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx
from torch._functorch._aot_autograd.descriptors import PlainAOTInput
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx.experimental.proxy_tensor import make_fx

from nmcompile import NMError, Policy, Rule
from nmcompile.capture.inputs import Capture
from nmcompile.capture.ranks import Ranks
from nmcompile.capture.regions import Region
from nmcompile.inductor import hooks
from nmcompile.inductor.hooks import JointPass, PostPass, sources_digest
from nmcompile.inductor.options import Settings
from tests.setups.steps import compiled, density, identity

HOOKS = ("joint_custom_pre_pass", "post_grad_custom_pre_pass")
FULL = Settings(Policy.recipe("full"))
CAPTURE = Capture(frozenset({1}), "the graph")


class Counting(CustomGraphPass):
    def __init__(self, name: Any = "counting") -> None:
        self.name, self.graphs = name, 0

    def __call__(self, graph: fx.Graph) -> None:
        self.graphs += 1

    def uuid(self) -> Any:
        return self.name


def joint(settings: Settings = FULL, capture: Capture = CAPTURE) -> JointPass:
    return JointPass(settings, capture, build_kernels=False)


# Passes of users


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


def ours(configured: Any) -> list[Any]:
    """Both of our passes, after what a user has configured."""
    settings = replace(FULL, inductor=dict.fromkeys(HOOKS, configured))
    return [joint(settings), PostPass(settings, "digest")]


def plain(graph: fx.Graph) -> None:
    """A pass that no cache can identify."""


@pytest.mark.parametrize("number", [0, 1], ids=["joint", "post-grad"])
def test_a_key_holds_the_users_keys_and_ours(number: int) -> None:
    alone = ours(None)[number]
    assert alone.uuid() == (alone.digest,)
    one, two = Counting("one"), Counting("two")
    for configured, names in ((one, ["one"]), ([one, two], ["one", "two"]), ((two,), ["two"])):
        found = ours(configured)[number]
        assert found.uuid() == (*names, found.digest)
    assert ours([one, two])[number].uuid() != ours([two, one])[number].uuid()


@pytest.mark.parametrize("configured", [plain, [Counting(), plain], Counting(None)])
def test_a_pass_without_a_key_turns_caching_off(configured: Any) -> None:
    assert [p.uuid() for p in ours(configured)] == [None, None]


def linear_graph() -> fx.Graph:
    f: Callable[..., Any] = torch.mm
    graph = make_fx(f, tracing_mode="fake")(torch.randn(4, 8), torch.randn(8, 6)).graph
    for index, node in enumerate(graph.find_nodes(op="placeholder")):
        node.meta["desc"] = PlainAOTInput(8 + index)  # as AOTAutograd describes its inputs
    return graph


def test_users_come_first_and_only_our_own_mistakes_are_called_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []

    def look(graph: fx.Graph) -> None:
        seen.append(len(graph.find_nodes(op="call_function", target=torch.ops.nm.prune.default)))

    settings = replace(FULL, policy=Policy(rules=[ANY]), inductor={HOOKS[0]: look})
    graph, own = linear_graph(), joint(settings)
    own(graph)
    look(graph)
    assert seen == [0, 1]
    (report,) = own.reports
    assert report.digest == own.digest

    def fail(*_: Any) -> None:
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        joint(replace(settings, inductor={HOOKS[0]: fail}))(linear_graph())
    monkeypatch.setattr(hooks, "run", fail)
    for step in ours(None):
        with pytest.raises(NMError, match=f"{type(step).__name__} failed on this graph: KeyError"):
            step(linear_graph())


#: Every product, without a weight among its operands.
ANY = Rule(op="matmul", role="fprop", prune="activation", format="2:4")


@pytest.mark.parametrize(
    ("kernels", "devices", "lower", "fuse"),
    [
        ("auto", ("cuda",), True, True),
        ("unfused", ("cuda",), True, False),
        ("operators", ("cuda",), False, True),
        ("generate", ("cuda", "cpu"), True, True),
        ("reference", (), True, True),
    ],
)
def test_where_kernels_are_generated(
    kernels: str, devices: tuple[str, ...], lower: bool, fuse: bool
) -> None:
    found = PostPass(replace(FULL, kernels=kernels), "digest")
    assert (found.devices, found.lower, found.fuse) == (devices, lower, fuse)


# What a key covers


READ = "schema = 1\n[[rule]]\ndense = true\n"
KEYS: dict[str, Callable[[], JointPass]] = {
    "": joint,
    "policy": lambda: joint(Settings(Policy.recipe("gradients"))),
    "margin": lambda: joint(Settings(Policy(extends="full", margin=2.0))),
    "a rule": lambda: joint(replace(FULL, policy=Policy.loads(READ, "a.toml"))),
    "where it was read": lambda: joint(replace(FULL, policy=Policy.loads(READ, "b.toml"))),
    "autotune": lambda: joint(replace(FULL, autotune=True)),
    "kernels": lambda: joint(replace(FULL, kernels="generate")),
    "region": lambda: joint(replace(FULL, region=Region(("layers.0", "layers.1")))),
    "prefix": lambda: joint(replace(FULL, region=Region(prefix="module"))),
    "a setting": lambda: joint(replace(FULL, inductor={"max_fusion_size": 8})),
    "its value": lambda: joint(replace(FULL, inductor={"max_fusion_size": 9})),
    "the graph": lambda: joint(capture=replace(CAPTURE, fingerprint="another graph")),
    "ranks": lambda: joint(capture=replace(CAPTURE, ranks=Ranks())),
    "meshes": lambda: joint(capture=replace(CAPTURE, ranks=Ranks((([0, 1], (0,), ("g",)),)))),
}


def test_whatever_changes_the_code_changes_the_key() -> None:
    found = {name: make().digest for name, make in KEYS.items()}
    assert len(set(found.values())) == len(found)
    assert found == {name: make().digest for name, make in KEYS.items()}
    made = joint()
    assert PostPass(FULL, made.digest).digest == made.digest


@pytest.mark.parametrize(
    ("owner", "name", "other"),
    [
        (hooks, "sources_digest", lambda: "other sources"),
        (hooks, "fingerprint", lambda: "another GPU"),
        (torch, "__version__", "3.0"),
    ],
    ids=["sources", "device", "torch"],
)
def test_the_key_covers_what_is_installed(
    owner: Any, name: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = joint().digest
    monkeypatch.setattr(owner, name, other)
    assert joint().digest != before


def test_every_kind_of_source_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "__file__", str(tmp_path / "inductor" / "hooks.py"))
    counted = ["a.py", "deep/er/b.py", "c.h", "d.cpp", "policy/e.toml", "f.jinja"]
    read = sources_digest.__wrapped__
    seen = [read()]
    for name in counted:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for text in ("", "1", "2"):
            path.write_text(text)
            seen.append(read())
    (tmp_path / "a.py").rename(tmp_path / "z.py")
    seen.append(read())
    assert len(set(seen)) == len(seen)
    (tmp_path / "notes.txt").write_text("no source")
    assert read() == seen[-1]


def test_no_other_kind_of_source_is_in_the_package() -> None:
    package = Path(hooks.__file__).parents[1]
    suffixes = {p.suffix for p in package.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    # The last one is empty; compiled code does not depend on how a report's page looks.
    assert suffixes - {".css", ".js"} == {".py", ".h", ".cpp", ".toml", ".jinja", ".typed"}
