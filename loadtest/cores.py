"""Which cores the servers use, and which the load generator."""

import os
from collections.abc import Sequence


def split_cores(for_servers: Sequence[int] = ()) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cores for the servers and for the load generator, so that they do not disturb each other.

    Args:
        for_servers: what the servers shall have, if that is decided. Default: all but one, which the generator gets.

    Returns:
        Both; empty where nothing is left to choose, and they share.
    """
    if for_servers:
        return tuple(for_servers), other_cores(for_servers)
    cores = sorted(os.sched_getaffinity(0))
    return (tuple(cores[:-1]), (cores[-1],)) if len(cores) > 1 else ((), ())


def other_cores(taken: Sequence[int]) -> tuple[int, ...]:
    """The cores that are left for the load generator, if the servers have some of their own; else none in particular."""
    return tuple(sorted(os.sched_getaffinity(0) - set(taken))) if taken else ()
