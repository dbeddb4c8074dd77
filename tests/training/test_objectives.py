"""The objective of average velocities, against closed forms for x0 ~ N(0, 0.25) per pixel."""

from pathlib import Path

import pytest
import torch
from helpers import Script, Trained, composed, scores
from torch import Tensor, nn

from unet_diffusion.config import build_datamodule
from unet_diffusion.diffusion import Denoiser, LinearSchedule, VelocityPrediction, X0Prediction
from unet_diffusion.models import UNet
from unet_diffusion.runs import Run
from unet_diffusion.samplers import AverageVelocitySampler, DDIMSampler, HeunSampler
from unet_diffusion.training.objectives import AverageVelocityObjective, NoisyBatch
from unet_diffusion.training.train import build_module

STD = 0.5


def std_of_xt(t: Tensor) -> Tensor:
    return (STD**2 * (1 - t) ** 2 + t**2).sqrt()


class IdealNetwork(nn.Module):
    """The closed-form average velocity: the flow scales xt in proportion to its deviation."""

    interval_embedding = nn.Identity()

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
    trajectories, _ = objective.generate(ideal, eps, torch.full((50,), -1))
    xt, t, s, target = objective.sample_points(trajectories)
    assert ((t > s) & (t <= 1) & (s >= 0)).all()
    assert 10 < ((t == 1) & (s == 0)).sum() < 40
    average_velocity = ideal.model_output(xt, t, None, s)
    assert (average_velocity - target).abs().max() < 5e-3
    assert (ideal.model_output(xt, t) - target).abs().max() > 0.1  # not that of s = t


def test_loss_before_the_start_and_average_velocity_with_s_equal_to_t_are_flow_matching():
    denoiser, batch = make_denoiser(), make_batch()
    objective = AverageVelocityObjective(HeunSampler(2), start=0.6)
    loss = objective.loss(denoiser, batch, denoiser, progress=0.5)
    torch.testing.assert_close(loss, denoiser.loss(*batch))
    outputs = (denoiser.model_output(batch.x0, batch.t, None, s) for s in (None, batch.t))
    torch.testing.assert_close(*outputs)


def test_gradients_do_not_flow_through_the_target():
    denoiser, ema = make_denoiser(), make_denoiser()
    objective = AverageVelocityObjective(HeunSampler(2), start=0, distillation_fraction=1.0)
    objective.loss(denoiser, make_batch(), ema, progress=0.5).backward()
    assert all(parameter.grad is None for parameter in ema.parameters())
    weight = denoiser.net.interval_embedding.mlp[0].weight
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


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
        (("prediction=x0",), "requires prediction=velocity and schedule=linear"),
        (("schedule=cosine",), "requires prediction=velocity and schedule=linear"),
    ],
)
def test_parts_without_average_velocity_raise(overrides: tuple[str, ...], message: str):
    cfg = composed("experiment=07_one_step", *overrides)
    with pytest.raises(ValueError, match=message):
        build_module(cfg, build_datamodule(cfg))


def test_sampler_needs_a_network_with_intervals():
    denoiser = Denoiser(UNet(channels=(16,)), LinearSchedule(), X0Prediction()).eval()
    with pytest.raises(ValueError, match=r"requires model\.interval_embedding=true"):
        AverageVelocitySampler().sample(denoiser, torch.randn(1, 1, 8, 8))


TINY = (
    *("model.channels=[16]", "model.emb_dim=16", "trainer.max_time=null", "trainer.max_steps=4"),
    *("callbacks.previews=null", "logger=csv", "+trainer.limit_val_batches=1"),
    "+trainer.limit_test_batches=1",
)
ONE_STEP = (*TINY, "experiment=07_one_step", "objective.start=0.5")


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
    frozen = ("optimizer=adamw", "optimizer.lr=1e-9", f"init_from={source}")
    state = Run.open(trained(*ONE_STEP, *frozen)).load_denoiser(weights="raw").state_dict()
    for name, value in Run.open(source).load_denoiser().state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)
    wide = (*ONE_STEP, "model.channels=[32]", f"init_from={source}")
    status, _, errors = script("train", *wide)
    assert (status, errors.count("\n")) == (2, 1)
    assert "parameters do not fit this network, such as net.stem.weight [16, 1, 3, 3]" in errors
