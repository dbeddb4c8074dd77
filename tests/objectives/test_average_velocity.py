"""The objective of average velocities, against closed forms for x0 ~ N(0, 0.25) per pixel."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import FEW_BATCHES, Script, Trained
from torch import Tensor, nn

from unet_diffusion.diffusion import Denoiser, LinearSchedule, VelocityPrediction, X0Prediction
from unet_diffusion.models import Network, UNet
from unet_diffusion.objectives import AverageVelocityObjective, DenoisingObjective, NoisyBatch
from unet_diffusion.runs.run import Run
from unet_diffusion.samplers import AverageVelocitySampler, HeunSampler

STD = 0.5


def std_of_xt(t: Tensor) -> Tensor:
    return (STD**2 * (1 - t) ** 2 + t**2).sqrt()


class IdealNetwork(Network):
    """The closed-form average velocity: the flow scales xt in proportion to its deviation."""

    accepts_interval = True

    def forward(self, xt: Tensor, t: Tensor, label: Tensor | None, interval: Tensor | None = None):
        t = t[:, None, None, None]
        if interval is None:  # the velocity, d xt / dt
            return xt * (t - STD**2 * (1 - t)) / std_of_xt(t) ** 2
        interval = interval[:, None, None, None]
        return xt * (1 - std_of_xt(t - interval) / std_of_xt(t)) / interval


@pytest.fixture
def ideal() -> Denoiser:
    return Denoiser(IdealNetwork(), LinearSchedule(), VelocityPrediction())


def make_denoiser() -> Denoiser:
    """A small network with random weights everywhere."""
    torch.manual_seed(0)
    net = UNet(channels=(16, 16), emb_dim=16, interval_embedding=True)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return Denoiser(net, LinearSchedule(), VelocityPrediction())


def make_batch(n: int = 12) -> NoisyBatch:
    x0, eps = torch.randn(2, n, 1, 8, 8)
    return NoisyBatch(STD * x0, eps, torch.linspace(0.01, 0.99, n), torch.full((n,), -1))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_closed_form_samples_exactly_in_any_number_of_steps(ideal: Denoiser, steps: int):
    eps = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    output = AverageVelocitySampler(steps).sample(ideal, eps)
    assert output.nfe == steps
    torch.testing.assert_close(output.images, STD * eps)


def test_closed_form_average_velocity_is_a_fixed_point(ideal: Denoiser):
    objective = AverageVelocityObjective(HeunSampler(64))
    eps = torch.randn(50, 1, 4, 4, dtype=torch.float64)
    label = torch.full((50,), -1)
    trajectories = objective.generate(ideal, eps, label)
    xt, t, s, _, target = objective.sample_points(trajectories, label)
    assert ((t > s) & (t <= 1) & (s >= 0)).all()
    assert (t[:30] == 1).all()  # one_step_fraction
    assert (s[:30] == 0).all()
    assert (ideal.average_velocity(xt, t, s) - target).abs().max() < 5e-3
    assert (ideal.model_output(xt, t) - target).abs().max() > 0.1  # not that of s = t


def test_loss_before_the_start_and_average_velocity_with_s_equal_to_t_are_flow_matching():
    denoiser, batch = make_denoiser(), make_batch()
    objective = AverageVelocityObjective(HeunSampler(2), start=0.6)
    loss = objective.loss(denoiser, batch, denoiser, progress=0.5).value
    torch.testing.assert_close(loss, denoiser.loss(*batch))
    outputs = (denoiser.model_output(batch.x0, batch.t, None, s) for s in (None, batch.t))
    torch.testing.assert_close(*outputs)


def test_gradients_do_not_flow_through_the_target_and_the_batch_is_not_changed():
    denoiser, ema, batch = make_denoiser(), make_denoiser(), make_batch()
    before = [each.clone() for each in batch]
    for arguments in ({}, {"distillation_fraction": 1.0, "matching_weight": 0}):
        denoiser.zero_grad()
        objective = AverageVelocityObjective(HeunSampler(2), start=0, **arguments)
        objective.loss(denoiser, batch, ema, progress=0.5).value.backward()
        assert all(parameter.grad is None for parameter in ema.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, batch, strict=True))
    weight = denoiser.net.interval_embedding.mlp[0].weight
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


def velocity(xt: Tensor, t: Tensor, std: float | Tensor) -> Tensor:
    """The velocity for images of this deviation, at times t (B, 1, 1, 1)."""
    return xt * (t - std**2 * (1 - t)) / (std**2 * (1 - t) ** 2 + t**2)


class ScalingNetwork(Network):
    """Generates a * eps in one step, and knows the velocities of real and of such images."""

    accepts_interval = True

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, xt: Tensor, t: Tensor, label: Tensor | None, interval: Tensor | None = None):
        t = t[:, None, None, None]
        std = torch.where(t < 0, self.a.detach(), STD)
        if interval is None:
            return velocity(xt, t.abs(), std)
        is_flow = (interval == 0)[:, None, None, None]
        return torch.where(is_flow, velocity(xt, t.abs(), std), (1 - self.a) * xt)


@pytest.mark.parametrize(("a", "sign"), [(0.8, 1), (STD, 0), (0.3, -1)])
def test_distribution_matching_moves_generated_images_to_the_real_deviation(a: float, sign: int):
    def gradient(weight: float, progress: float) -> float:
        torch.manual_seed(0)
        denoiser = Denoiser(ScalingNetwork(a), LinearSchedule(), VelocityPrediction())
        objective = AverageVelocityObjective(HeunSampler(2), matching_weight=weight)
        objective.loss(denoiser, make_batch(400), denoiser, progress).value.backward()
        return denoiser.net.a.grad.item()

    difference = gradient(4, progress=1) - gradient(0, progress=1)
    assert difference * sign > 0.01 if sign else abs(difference) < 1e-5
    assert gradient(4, progress=0.5) == gradient(0, progress=0.5)  # at the start


def test_batch_without_room_for_each_part_and_network_without_intervals_raise():
    for fraction in (0.0, 0.5):
        with pytest.raises(ValueError, match=f"^generated_fraction={fraction}: expected"):
            AverageVelocityObjective(HeunSampler(2), generated_fraction=fraction)
    denoiser = Denoiser(UNet(channels=(16,)), LinearSchedule(), X0Prediction()).eval()
    with pytest.raises(ValueError, match="requires a network with an interval"):
        AverageVelocitySampler(1).sample(denoiser, torch.randn(1, 1, 8, 8))


def test_number_of_training_images_that_the_loss_depends_on():
    denoiser, batch = make_denoiser(), make_batch()
    assert DenoisingObjective().loss(denoiser, batch, denoiser, progress=1).num_images == 12
    objective = AverageVelocityObjective(HeunSampler(2), start=0.5)
    # before the start; without and with images that the previous step generated
    for progress, expected in ((0.4, 12), (0.6, 6), (0.6, 3)):
        x0 = batch.x0.clone().requires_grad_()
        loss = objective.loss(denoiser, batch._replace(x0=x0), denoiser, progress)
        (gradient,) = torch.autograd.grad(loss.value, x0)
        assert loss.num_images == expected == gradient.flatten(1).any(dim=1).sum()


TINY = (
    *("model.channels=[16]", "model.emb_dim=16", "trainer.max_time=null", "trainer.max_steps=4"),
    *("callbacks.previews=null", "logger=csv", "data.batch_size=32", *FEW_BATCHES),
)
ONE_STEP = (*TINY, "experiment=07_one_step", "objective.start=0.5")


def test_weights_of_another_run_are_the_start(script: Script, trained: Trained, tmp_path: Path):
    source = trained(*TINY, "experiment=04_flow")
    shutil.copytree(source, tmp_path / "runs" / "04_flow" / "a")
    frozen = ("optimizer=adamw", "optimizer.lr=1e-9", "init_from=latest:04_flow")
    assert script("train", *ONE_STEP, *frozen, "run_dir=runs/b")[0] == 0
    run = Run.open(tmp_path / "runs" / "b")
    assert run.config.recorded.init_from.endswith("04_flow/a")
    state = run.load_denoiser(weights="raw").state_dict()
    for name, value in Run.open(source).load_denoiser().state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)
    wide = (*ONE_STEP, "model.channels=[32]", f"init_from={source}")
    status, _, errors = script("train", *wide)
    assert (status, errors.count("\n")) == (2, 1)
    assert "parameters do not fit this network, such as net.stem.weight [16, 4, 3, 3]" in errors
