"""How the images of a batch are shared by the processes of a training."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Share:
    """One process's part of what all processes of a training see together: every `processes`-th, from the `rank`-th on.

    That is how DistributedSampler deals out images. So what every process draws alike for all of a batch's images, and then
    takes its share of, is what a single process would draw for them.
    """

    processes: int = 1
    rank: int = 0

    def of(self, whole: Tensor) -> Tensor:
        """This process's part of a tensor whose first axis counts the images of all processes; a view."""
        return whole if self.processes == 1 else whole[self.rank :: self.processes]
