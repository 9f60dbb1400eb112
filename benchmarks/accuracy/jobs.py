"""What is left to train: the runs that are asked for, without those that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.accuracy.arms import ARMS
from benchmarks.accuracy.results import Row, Store, key_of
from benchmarks.accuracy.studies import STUDIES
from benchmarks.accuracy.training import Setting


@dataclass(frozen=True)
class Job:
    """One arm of one network, for the seeds that are left.

    Attributes:
        steps: updates of a run.
        data: the folder of the data, None for the study's own.
        out: the folder of the results.
        setting, policy, about: what the runs' rows say of it, to be told from runs of others.
    """

    study: str
    network: str
    arm: str
    seeds: tuple[int, ...]
    steps: int
    data: Path | None
    out: Path
    setting: str
    policy: str
    about: str

    @property
    def label(self) -> str:
        return f"{self.network} {self.arm}"

    @property
    def updates(self) -> int:
        return len(self.seeds) * self.steps

    def training(self) -> Setting:
        """How it is trained."""
        return STUDIES[self.study].setting(self.network, self.data)

    def columns(self) -> dict[str, str]:
        """Of the rows of its runs."""
        return {"setting": self.setting, "policy": self.policy, "data": self.about}


def asked(
    store: Store,
    networks: Sequence[str],
    arms: Sequence[str],
    seeds: int,
    steps: int | None,
    data: Path | None,
) -> list[Job]:
    """A job for each arm and network, for all seeds. Nothing named means all.

    Raises:
        ValueError: there is no such arm or network, or the data cannot be read.
    """
    study = store.study
    _check(networks, list(study.networks), "network")
    _check(arms, list(ARMS), "arm")
    found = []
    for network in networks or study.networks:
        setting = study.setting(network, data)
        updates = steps or setting.steps
        digest, about = setting.digest(updates), setting.load().about
        found += [
            Job(
                *(study.name, network, arm, tuple(range(seeds)), updates, data, store.folder),
                *(digest, ARMS[arm].digest(), about),
            )
            for arm in arms or study.arms[network]
        ]
    return found


def others(store: Store, jobs: Sequence[Job]) -> list[Row]:
    """The rows that cannot stand beside these jobs: of their networks, trained in another way, or
    of networks and arms that the study no longer has.
    """
    settings = {job.network: job.setting for job in jobs}

    def fits(row: Row) -> bool:
        network, arm, _ = key_of(row)
        if network not in store.study.networks or arm not in ARMS:
            return False
        return network not in settings or (
            row.get("setting") == settings[network] and row.get("policy") == ARMS[arm].digest()
        )

    return [row for row in store.rows() if not fits(row)]


def left(store: Store, jobs: Sequence[Job]) -> list[Job]:
    """The jobs without the runs that are there."""
    there = {key_of(row) for row in store.rows()}
    found = []
    for job in jobs:
        seeds = tuple(s for s in job.seeds if (job.network, job.arm, s) not in there)
        if seeds:
            found.append(replace(job, seeds=seeds))
    return found


def _check(words: Sequence[str], known: Sequence[str], what: str) -> None:
    for word in words:
        if word not in known:
            raise ValueError(f"there is no {what} {word!r}: write some of {', '.join(known)}")
