"""Learning-rate schedules as functions of progress, and in trainings."""

import math

import pytest
from helpers import Trained, logged

from unet_diffusion.training.lr_schedules import LinearLRSchedule, LRSchedule, OneCycleLRSchedule

LOGGED = ("trainer.log_every_n_steps=1", "logger=csv", "+trainer.limit_test_batches=1")


ONE_CYCLE = {0: 0.1, 0.1: 0.55, 0.2: 1, 0.4: (1 + math.cos(math.pi / 4)) / 2, 0.6: 0.5, 1: 0}
LINEAR = {0: 0, 0.1: 0.5, 0.2: 1, 0.6: 0.5, 0.9: 0.125, 1: 0, 1.01: 0}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [(OneCycleLRSchedule(0.2, 0.1), ONE_CYCLE), (LinearLRSchedule(0.2), LINEAR)],
)
def test_factors_at_known_points(schedule: LRSchedule, expected: dict[float, float]):
    assert {each: schedule.factor(each) for each in expected} == pytest.approx(expected)


@pytest.mark.parametrize("schedule", [OneCycleLRSchedule, LinearLRSchedule])
def test_warmup_can_be_nothing_or_everything(schedule: type):
    factors = [schedule(warmup=0.0).factor(i / 10) for i in range(11)]
    assert factors == sorted(factors, reverse=True)
    assert (factors[0], factors[-1]) == (1.0, pytest.approx(0.0))
    assert schedule(warmup=1.0).factor(1.0) == 1.0


@pytest.mark.parametrize(
    "limit",
    [
        "trainer.max_steps=6",
        "trainer.max_steps=-1 trainer.max_epochs=2 +trainer.limit_train_batches=3",
        "trainer.max_steps=6 trainer.accumulate_grad_batches=2",
    ],
)
def test_learning_rate_follows_the_steps_to_the_limit(trained: Trained, limit: str):
    schedule = ("lr_schedule=linear", "lr_schedule.warmup=0", "optimizer.lr=0.006")
    run = trained(*limit.split(), *schedule, *LOGGED)
    rates = list(logged(run, "learning_rate").values())
    assert rates == pytest.approx([0.006, 0.005, 0.004, 0.003, 0.002, 0.001])


def test_learning_rate_ends_near_zero_at_a_time_limit(trained: Trained):
    limit = ("trainer.max_time=00:00:00:02", "trainer.max_steps=-1")
    run = trained(*limit, *LOGGED, "trainer.val_check_interval=5000")
    rates = list(logged(run, "learning_rate").values())
    assert max(rates) == pytest.approx(0.01, rel=0.1)
    assert rates[-1] < max(rates) / 5
    assert len(logged(run, "val/loss")) == 1
