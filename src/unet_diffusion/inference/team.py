"""Processes that draw together: those that torchrun started, or this one alone."""

import pickle
from datetime import timedelta
from functools import cache
from typing import TypeVar

from torch.distributed import PrefixStore, Store, is_torchelastic_launched  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")
_PATIENCE = timedelta(days=1)


class Team:
    """How many processes draw, and which of them this is.

    They hand each other what they have through torchrun's store. A process group would do it too, but where there is one,
    torchmetrics would wait at every score for the others, which have none.

    Args:
        size: how many processes there are, 1 or more.
        rank: which of them this is, from 0 on.
        store: where they exchange things; None for a single one.
    """

    def __init__(self, size: int = 1, rank: int = 0, store: Store | None = None) -> None:
        self.size = size
        self.rank = rank
        self._store = store
        self._rounds = 0

    @classmethod
    def joined(cls) -> "Team":
        """The team of the processes that torchrun started, which this one joins; by itself without torchrun."""
        return _of_torchrun() if is_torchelastic_launched() else cls()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and scores."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of `count` images this process draws: all in a row, as many as any other or one more; possibly none."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gathered(self, own: list[T]) -> list[T]:
        """What all processes have, in their order; in each of them. All of them must call this as often."""
        if self._store is None:
            return own
        self._rounds += 1
        self._store.set(f"{self._rounds}/{self.rank}", pickle.dumps(own))  # type: ignore[arg-type]
        everyones = [pickle.loads(self._store.get(f"{self._rounds}/{rank}")) for rank in range(self.size)]
        # all have come to this round, so none is still reading the one before
        self._store.delete_key(f"{self._rounds - 1}/{self.rank}")
        return [one for theirs in everyones for one in theirs]


@cache
def _of_torchrun() -> Team:
    store, rank, size = next(iter(rendezvous("env://", timeout=_PATIENCE)))
    store.set_timeout(_PATIENCE)  # helpers wait while the first one scores
    return Team(size, rank, PrefixStore("unet_diffusion", store))
