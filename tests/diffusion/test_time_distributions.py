import math
from collections.abc import Callable

import pytest
import torch

from unet_diffusion.diffusion import FixedTime, LogitNormalTime, TimeDistribution, UniformTime


@pytest.mark.parametrize(
    "distribution",
    [UniformTime(), UniformTime(0.2, 0.6), LogitNormalTime(), LogitNormalTime(-1, 0.5)],
)
def test_sample_has_one_time_in_each_stratum(distribution: TimeDistribution):
    torch.manual_seed(0)
    edges = distribution.icdf(torch.linspace(0, 1, 9))
    times = distribution.sample(8)
    assert ((edges[:-1] <= times) & (times <= edges[1:])).all()
    assert not torch.equal(times, distribution.sample(8))


def test_logit_of_logit_normal_time_is_gaussian():
    torch.manual_seed(0)
    distribution = LogitNormalTime(mean=0.5, std=2)
    t = distribution.sample(20_000).double()
    logit = torch.log(t / (1 - t))
    assert logit.mean().item() == pytest.approx(0.5, abs=0.01)
    assert logit.std().item() == pytest.approx(2, rel=0.01)
    # the normal distribution function at one standard deviation above the mean
    u = torch.tensor((1 + math.erf(1 / math.sqrt(2))) / 2)
    assert distribution.icdf(u).item() == pytest.approx(1 / (1 + math.exp(-2.5)), rel=1e-5)


def test_quantiles_at_known_points():
    assert torch.equal(FixedTime(0.3).sample(7), torch.full((7,), 0.3))
    u = torch.tensor([0, 0.25, 1])
    torch.testing.assert_close(UniformTime(0.2, 0.6).icdf(u), torch.tensor([0.2, 0.3, 0.6]))
    assert LogitNormalTime().icdf(torch.tensor([0.0, 1.0])).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("make", "argument", "values"),
    [
        (FixedTime, "percent", [-0.1, 1.01, 200, math.nan]),
        (lambda low: UniformTime(low, 0.5), "min", [0.5, -0.1]),
        (lambda high: UniformTime(0, high), "min", [30]),
        (lambda std: LogitNormalTime(std=std), "std", [0.0, -1.0, math.nan]),
    ],
)
def test_invalid_arguments_raise(make: Callable[..., object], argument: str, values: list[float]):
    for value in values:
        with pytest.raises(ValueError, match=f"^{argument}=.*: expected"):
            make(value)
    with pytest.raises(ValueError, match=r"^percent=50: .*\. Did you mean 0\.5\?$"):
        FixedTime(50)
