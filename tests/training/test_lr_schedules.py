import math

import pytest

from unet_diffusion.training.lr_schedules import Constant, Linear, OneCycle


def test_one_cycle_at_known_points():
    cycle = OneCycle(warmup=0.2, start=0.1)
    assert cycle.factor(0.0) == pytest.approx(0.1)
    assert cycle.factor(0.1) == pytest.approx(0.55)  # half-way up
    assert cycle.factor(0.2) == pytest.approx(1.0)
    assert cycle.factor(0.6) == pytest.approx(0.5)  # half-way down
    assert cycle.factor(0.4) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert cycle.factor(1.0) == pytest.approx(0.0)


def test_one_cycle_without_warmup_only_falls():
    factors = [OneCycle(warmup=0.0).factor(p / 10) for p in range(11)]
    assert factors[0] == 1.0
    assert factors == sorted(factors, reverse=True)


def test_linear_at_known_points():
    linear = Linear(warmup=0.2)
    points = {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 0.5, 0.9: 0.125, 1.0: 0.0, 1.01: 0.0}
    assert {at: pytest.approx(linear.factor(at)) for at in points} == points
    assert Linear(warmup=0.0).factor(0.0) == 1.0
    assert Linear(warmup=1.0).factor(1.0) == 1.0
    with pytest.raises(ValueError, match=r"^warmup=1\.5"):
        Linear(warmup=1.5)


def test_constant_is_constant():
    assert {Constant().factor(p) for p in (0.0, 0.3, 1.0)} == {1.0}


@pytest.mark.parametrize("arguments", [{"warmup": 2}, {"start": -0.1}, {"warmup": "abc"}])
def test_impossible_arguments_are_refused(arguments: dict):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}="):
        OneCycle(**arguments)
