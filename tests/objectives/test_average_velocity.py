"""The objective of average velocities, against closed forms for x0 ~ N(0, 0.25) per pixel."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import Script, Trained, built, scores
from torch import Tensor, nn

from unet_diffusion.diffusion import Denoiser, LinearSchedule, VelocityPrediction, X0Prediction
from unet_diffusion.models import Network, UNet
from unet_diffusion.objectives import AverageVelocityObjective, DenoisingObjective, NoisyBatch
from unet_diffusion.runs.run import Run
from unet_diffusion.samplers import AverageVelocitySampler, DDIMSampler, HeunSampler

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
def test_closed_form_average_velocity_samples_exactly_in_any_number_of_steps(
    ideal: Denoiser, steps: int
):
    eps = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    output = AverageVelocitySampler(steps).sample(ideal, eps)
    assert output.nfe == steps
    torch.testing.assert_close(output.images, STD * eps)


def test_untrained_interval_changes_nothing():
    torch.manual_seed(0)
    net = UNet(channels=(16, 16), interval_embedding=True)
    nn.init.normal_(net.out[-1].weight)
    denoiser = Denoiser(net, LinearSchedule(), VelocityPrediction()).eval()
    eps = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(
        AverageVelocitySampler(4).sample(denoiser, eps).images,
        DDIMSampler(4).sample(denoiser, eps).images,
    )


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


def test_gradients_do_not_flow_through_the_target():
    denoiser, ema = make_denoiser(), make_denoiser()
    for arguments in ({}, {"distillation_fraction": 1.0, "matching_weight": 0}):
        denoiser.zero_grad()
        objective = AverageVelocityObjective(HeunSampler(2), start=0, **arguments)
        objective.loss(denoiser, make_batch(), ema, progress=0.5).value.backward()
        assert all(parameter.grad is None for parameter in ema.parameters())
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
        self.times: list[Tensor] = []

    def forward(self, xt: Tensor, t: Tensor, label: Tensor | None, interval: Tensor | None = None):
        self.times.append(t)
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


def test_parts_of_a_batch_cover_all_times():
    net = ScalingNetwork(0.8)
    denoiser = Denoiser(net, LinearSchedule(), VelocityPrediction())
    objective = AverageVelocityObjective(HeunSampler(2))
    for _ in range(2):  # the first step generates the images for the second
        net.times.clear()
        objective.loss(denoiser, make_batch(400), denoiser, progress=1)
    distilled, generated, real = net.times[-3].split([200, 100, 100])  # then distribution matching
    assert (distilled == 1).sum() >= 120
    for times in (-generated, real, net.times[-2], -net.times[-1]):
        assert times.min() < 0.1
        assert times.max() > 0.9


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_batch_without_room_for_each_part_raises(fraction: float):
    with pytest.raises(ValueError, match=f"^generated_fraction={fraction}: expected"):
        AverageVelocityObjective(HeunSampler(2), generated_fraction=fraction)


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


def test_batch_of_the_training_is_not_changed():
    batch = make_batch()
    before = [each.clone() for each in batch]
    objective = AverageVelocityObjective(HeunSampler(2), start=0)
    objective.loss(make_denoiser(), batch, make_denoiser(), progress=0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, batch, strict=True))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.interval_embedding=false",), "requires model=unet model.interval_embedding=true"),
        (("prediction=x0",), "requires .* prediction=velocity schedule=linear"),
        (("schedule=cosine",), "requires .* prediction=velocity schedule=linear"),
    ],
)
def test_parts_without_average_velocity_raise(overrides: tuple[str, ...], message: str):
    with pytest.raises(ValueError, match=message):
        built("experiment=07_one_step", *overrides)


def test_sampler_needs_a_network_with_intervals():
    denoiser = Denoiser(UNet(channels=(16,)), LinearSchedule(), X0Prediction()).eval()
    with pytest.raises(ValueError, match="requires a network with an interval"):
        AverageVelocitySampler(1).sample(denoiser, torch.randn(1, 1, 8, 8))


TINY = (
    *("model.channels=[16]", "model.emb_dim=16", "trainer.max_time=null", "trainer.max_steps=4"),
    *("callbacks.previews=null", "logger=csv", "+trainer.limit_val_batches=1"),
    "+trainer.limit_test_batches=1",
)
ONE_STEP = (*TINY, "experiment=07_one_step", "objective.start=0.5")


def test_guidance_of_trajectories_requires_classes_and_a_null_class(script: Script):
    for overrides, message in (
        (
            ("experiment=07_one_step", "model.num_classes=0"),
            "objective.guidance_scale=2: the network",
        ),
        (("experiment=08_one_step_classes", "label_dropout=0"), "the null class is not trained"),
    ):
        status, _, errors = script("train", *TINY, *overrides)
        assert (status, message in errors) == (2, True), errors


def test_one_step_experiment_trains_and_keeps_the_last_weights(trained: Trained):
    run = Run.open(trained(*ONE_STEP, "trainer.max_steps=8"))
    best, last = (
        run.load_denoiser(checkpoint, "raw").state_dict() for checkpoint in ("best", "last")
    )
    assert all(torch.equal(best[name], last[name]) for name in best)
    assert best["net.interval_embedding.mlp.2.weight"].abs().max() > 0
    assert scores(run.path)["val/loss"] > 0


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
