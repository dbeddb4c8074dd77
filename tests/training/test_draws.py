import pytest
import torch

from unet_diffusion.data.datamodule import Batch
from unet_diffusion.diffusion import UniformLevels
from unet_diffusion.shares import Share
from unet_diffusion.training.draws import Drawn, Draws


def batch_of(count: int) -> Batch:
    return Batch(torch.zeros(count, 1, 3, 3), torch.arange(count), torch.arange(count))


def drawn(processes: int, rank: int, batches: int, count: int, steps: int = 2) -> list[Drawn]:
    """What one process draws for all its batches of some optimizer steps."""
    torch.manual_seed(0)
    draws = Draws(UniformLevels(), label_dropout=0.5)
    draws.share, draws.batches = Share(processes, rank), batches
    return [draws.for_batch(batch_of(count), i) for i in range(steps * batches)]


def test_one_process_draws_levels_then_noise_then_what_to_hide():
    (own,) = drawn(1, 0, batches=1, count=12, steps=1)
    torch.manual_seed(0)
    assert torch.equal(own.t, UniformLevels().draw(12))
    assert torch.equal(own.eps, torch.randn(12, 1, 3, 3))
    assert torch.equal(own.label, torch.where(torch.rand(12) < 0.5, -1, torch.arange(12)))


@pytest.mark.parametrize(("processes", "batches"), [(1, 3), (2, 1), (3, 2)])
def test_processes_and_accumulated_batches_share_what_one_whole_batch_draws(processes: int, batches: int):
    whole = drawn(1, 0, batches=1, count=12)
    parts = [drawn(processes, rank, batches, count=12 // processes // batches) for rank in range(processes)]
    for step, one in enumerate(whole):
        for rank, of_rank in enumerate(parts):
            of_step = of_rank[step * batches : (step + 1) * batches]
            assert torch.equal(torch.cat([part.t for part in of_step]), one.t[rank::processes])
            assert torch.equal(torch.cat([part.eps for part in of_step]), one.eps[rank::processes])
            hidden = torch.cat([part.label < 0 for part in of_step])
            assert torch.equal(hidden, (one.label < 0)[rank::processes])


def test_an_epoch_that_ends_between_two_steps_begins_the_next_with_fresh_noise():
    torch.manual_seed(0)
    draws = Draws(UniformLevels(), label_dropout=0.0)
    draws.batches = 3
    first, second, anew = (draws.for_batch(batch_of(4), i).eps for i in (0, 1, 0))
    assert not any(torch.equal(a, b) for a, b in ((first, second), (first, anew), (second, anew)))
