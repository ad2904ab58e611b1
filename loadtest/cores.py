"""The cores of the servers, and those of the load generator."""

import os
from collections.abc import Sequence


def split_cores(for_servers: Sequence[int] = ()) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose cores for the servers and for the load generator, so that they do not disturb each other.

    Args:
        for_servers: the servers' cores, if they are already chosen. Default: all but one, which the generator gets.

    Returns:
        The servers' cores and the generator's. Empty if there is only one core: both share it.
    """
    if for_servers:
        return tuple(for_servers), other_cores(for_servers)
    cores = sorted(os.sched_getaffinity(0))
    return (tuple(cores[:-1]), (cores[-1],)) if len(cores) > 1 else ((), ())


def other_cores(taken: Sequence[int]) -> tuple[int, ...]:
    """The cores that are not `taken`; empty if `taken` is empty."""
    return tuple(sorted(os.sched_getaffinity(0) - set(taken))) if taken else ()
