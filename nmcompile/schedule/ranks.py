"""Several processes switch at the same step, or say why not."""

from __future__ import annotations

import torch.distributed as dist

from nmcompile import _torch
from nmcompile.capture.ranks import check_agreement
from nmcompile.errors import ScheduleError


def check_phases(schedule: int, phases: str) -> None:
    """Every rank must have the same phases; whoever comes later sees the difference.

    Args:
        schedule: its number in this process, in the order in which they are made.
        phases: all of them, as text.

    Raises:
        ScheduleError: another rank has others.
    """
    if _torch.process_group_size() == 1:
        return
    if difference := check_agreement("schedules", f"schedule/{schedule}/phases", phases):
        raise ScheduleError(
            f"{difference}: every rank must make the same schedules in the same order"
        )


def meet(schedule: int, switch: int, step: int) -> None:
    """Wait until every rank has come to this switch. Return at once where there is one process.

    The processes of a training step wait for each other anyway, and between two steps none can
    be far behind: one that does not come within the timeout of ``init_process_group`` has lost
    count. Without this it would multiply with another policy for a while, and nothing would fail.

    Args:
        schedule: its number in this process.
        switch: how many switches it has made.
        step: at which it makes this one.

    Raises:
        ScheduleError: another rank did not come, or is at another step.
    """
    world = _torch.process_group_size()
    if world == 1:
        return
    store, me = _torch.process_group_store(), dist.get_rank()
    if store is None:
        return
    key = f"nmcompile/schedule/{schedule}/{switch}"
    store.set(f"{key}/{me}", str(step))
    if store.add(f"{key}/count", 1) == world:
        store.set(f"{key}/all", "")
    try:
        store.wait([f"{key}/all"])
    except RuntimeError as error:  # DistStoreError, a timeout
        missing = [str(r) for r in range(world) if not store.check([f"{key}/{r}"])]
        if not missing:
            raise
        raise ScheduleError(
            f"rank {me} switches to the phase of step {step}, and rank {', '.join(missing)} did "
            f"not within {store.timeout.total_seconds():.0f} s: every rank must call step() after "
            "each step, also after one that it skips"
        ) from error
    # In a ring of unequal steps at least one rank differs from the next.
    theirs = store.get(f"{key}/{(me + 1) % world}").decode()
    if theirs != str(step):
        raise ScheduleError(
            f"rank {me} switches after {step} steps, and rank {(me + 1) % world} after {theirs}: "
            "every rank must count the same steps"
        )


def is_first() -> bool:
    """Whether this process speaks for all."""
    return _torch.process_group_size() == 1 or dist.get_rank() == 0
