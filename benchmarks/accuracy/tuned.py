"""Policies by measurement, made where an arm needs one and kept beside the results."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import nmcompile
from benchmarks import records
from benchmarks.accuracy.jobs import Job
from benchmarks.accuracy.models import Objective
from benchmarks.accuracy.training import OTHER, Arm

#: Batches to tune on.
BATCHES = 8


def tuned_policy(job: Job, flops: float) -> Path:
    """The file of the policy that ``nmcompile.tune`` chooses for a share of the FLOPs.

    The network is trained dense for all of the job's steps, with parameters and batches that no run
    has, and tuned on the batches that would come next. A file of the same setting is used as it is.
    """
    path = job.out / f"accuracy_{job.study}_{job.network}_tuned-{100 * flops:.0f}.toml"
    head = f"# Setting {job.setting}.\n"
    if path.exists() and path.read_text().startswith(head):
        return path
    arm = Arm(job.training(), job.network, "dense", {0: "dense"}, job.steps)
    arm.run(OTHER, lambda step, loss: None)
    objective = Objective(arm.net).train()
    batches = list(islice(arm.data.batches(OTHER), job.steps, job.steps + BATCHES))
    tuned = nmcompile.tune(objective, batches, flops=flops)
    records.save(path, head + tuned.to_toml())
    return path
