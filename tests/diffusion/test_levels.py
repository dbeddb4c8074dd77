import math

import pytest
import torch

from unet_diffusion.diffusion import Levels, LogitNormalLevels, UniformLevels


@pytest.mark.parametrize("levels", [UniformLevels(), UniformLevels(0.2, 0.6), LogitNormalLevels(), LogitNormalLevels(-1, 0.5)])
def test_a_batch_has_one_level_in_each_share_of_the_distribution(levels: Levels):
    torch.manual_seed(0)
    edges = levels.quantile(torch.linspace(0, 1, 9))
    drawn = levels.draw(8)
    assert ((edges[:-1] <= drawn) & (drawn <= edges[1:])).all()
    assert not torch.equal(drawn, levels.draw(8))


def test_uniform_levels_lie_between_their_ends():
    torch.testing.assert_close(UniformLevels(0.2, 0.6).quantile(torch.tensor([0, 0.25, 1])), torch.tensor([0.2, 0.3, 0.6]))


def test_the_logit_of_logit_normal_levels_is_gaussian():
    torch.manual_seed(0)
    t = LogitNormalLevels(mean=0.5, std=2).draw(20_000).double()
    logit = torch.log(t / (1 - t))
    assert logit.mean().item() == pytest.approx(0.5, abs=0.01)
    assert logit.std().item() == pytest.approx(2, rel=0.01)
    # the normal distribution's quantile at one standard deviation
    one_up = LogitNormalLevels(mean=0.5, std=2).quantile(torch.tensor((1 + math.erf(1 / math.sqrt(2))) / 2))
    assert one_up.item() == pytest.approx(1 / (1 + math.exp(-2.5)), rel=1e-5)


def test_the_ends_of_the_distribution_are_clean_and_pure_noise():
    assert LogitNormalLevels().quantile(torch.tensor([0.0, 1.0])).tolist() == [0, 1]


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.6, 0.2), (-0.1, 1), (0, 30)])
def test_an_empty_range_is_refused(low: float, high: float):
    with pytest.raises(ValueError, match=r"^(low|high)="):
        UniformLevels(low, high)


@pytest.mark.parametrize("std", [0, -1, float("nan"), "wide"])
def test_an_impossible_spread_is_refused(std: object):
    with pytest.raises(ValueError, match=r"^std="):
        LogitNormalLevels(std=std)
