"""sample_images, class labels, and how a run and the arguments are combined."""

from pathlib import Path

import pytest
import torch
from helpers import composed
from torch import Tensor

from unet_diffusion.diffusion import Denoiser, LinearSchedule, X0Prediction, seeded_noise
from unet_diffusion.generation.pipeline import Pipeline, check_guidance, class_labels, sample_images
from unet_diffusion.runs import Run
from unet_diffusion.samplers import (
    AncestralSampler,
    DDIMSampler,
    HeunSampler,
    OneStepSampler,
    Sampler,
)

NAMES = ("T-shirt/top", "trouser", "ankle-boot")


class LabelNet(torch.nn.Module):
    """x0_hat = label + xt / 10."""

    def forward(self, xt: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return (0 if label is None else label[:, None, None, None].to(xt)) + xt / 10


DENOISER = Denoiser(LabelNet(), LinearSchedule(), X0Prediction())
EPS = seeded_noise(3, range(9), (1, 4, 4))


@pytest.mark.parametrize("sampler", [OneStepSampler(), DDIMSampler(4, eta=1), HeunSampler(3)])
@pytest.mark.parametrize("from_image", [False, True])
def test_images_do_not_depend_on_the_batch_size(sampler: Sampler, from_image: bool):
    x0 = torch.linspace(-1, 1, 9).view(9, 1, 1, 1).expand(9, 1, 4, 4) if from_image else None
    label = torch.arange(9)
    arguments = {"seed": 3, "x0": x0, "strength": 0.4}
    whole = sample_images(DENOISER, sampler, EPS, label, batch_size=9, **arguments)
    batched = sample_images(DENOISER, sampler, EPS, label, batch_size=4, **arguments)
    torch.testing.assert_close(batched.images, whole.images)
    assert whole.nfe == batched.nfe


def test_ancestral_noise_is_fresh_at_every_step_and_depends_on_seed_and_index():
    sampler = DDIMSampler(2, eta=1)
    output = sample_images(DENOISER, sampler, EPS, seed=3, return_trajectory=True)
    # At t = 1/2, x = x0_hat / 2 + noise / 2 with x0_hat = EPS / 10.
    noise = 2 * (output.trajectory[1] - 0.5 * EPS / 10)
    expected = seeded_noise(3, range(9), (1, 4, 4), step=1)
    torch.testing.assert_close(noise, expected, rtol=1e-4, atol=1e-5)
    other_seed = sample_images(DENOISER, sampler, EPS, seed=4).images
    assert not torch.allclose(output.images, other_seed)
    part = sample_images(DENOISER, sampler, EPS[:4], seed=3).images
    torch.testing.assert_close(part, output.images[:4])


def test_sampling_from_an_image_starts_at_its_noise_level():
    x0 = torch.full((9, 1, 4, 4), 0.5)
    output = sample_images(
        DENOISER, DDIMSampler(2), EPS, x0=x0, strength=0.4, batch_size=4, return_trajectory=True
    )
    torch.testing.assert_close(output.trajectory[0], 0.6 * x0 + 0.4 * EPS)
    assert [len(images) for images in output.trajectory] == [9] * 3  # of all batches
    assert torch.equal(output.trajectory[-1], output.images)


def test_sampler_keys_of_the_run_are_used_unless_overridden(short_run: Path):
    run = Run.open(short_run)
    run.config.sampler.clip = "dynamic"
    heun = {"_target_": "unet_diffusion.samplers.HeunSampler", "steps": 3}
    assert Pipeline.load(run).sampler.clip == "dynamic"
    assert Pipeline.load(run, sampler={"clip": "static"}).sampler.clip == "static"
    generator = Pipeline.load(run, sampler=heun)
    assert isinstance(generator.sampler, HeunSampler)
    assert generator.sampler_name == "HeunSampler(steps=3, time_grid=uniform, clip=none)"


def test_ancestral_sampler_has_its_own_name(short_run: Path):
    config = composed("sampler=ancestral").sampler
    pipeline = Pipeline.load(Run.open(short_run), sampler=dict(config))
    assert pipeline.sampler_name.startswith("AncestralSampler(steps=100, ")
    eps = torch.randn(2, 1, 4, 4)
    torch.manual_seed(0)
    ancestral = AncestralSampler(3).sample(DENOISER, eps).images
    torch.manual_seed(0)
    torch.testing.assert_close(ancestral, DDIMSampler(3, eta=1).sample(DENOISER, eps).images)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("auto", [0, 1, 2, 0, 1]),
        ("all", [0, 1, 2, 0, 1]),
        ("none", [-1] * 5),
        (2, [2] * 5),
        ("Ankle Boot", [2] * 5),
        ("tshirt/top", [0] * 5),
    ],
)
def test_class_labels(label: str | int, expected: list[int]):
    labels = class_labels(label, 5, 3, NAMES)
    assert labels is not None
    assert labels.tolist() == expected


def test_classes_and_guidance_that_the_network_does_not_have_raise():
    assert class_labels("auto", 5, 0, NAMES) is None
    with pytest.raises(ValueError, match=r"^label=3: expected all, none, 0 to 2, or one of T-sh"):
        class_labels(3, 5, 3, NAMES)
    with pytest.raises(ValueError, match=r"^label=1: the network has no classes"):
        class_labels(1, 5, 0, NAMES)
    with pytest.raises(ValueError, match=r"^guidance_scale=2: the network has no classes"):
        check_guidance(2, num_classes=0, label_dropout=0.1)
    with pytest.raises(ValueError, match=r"^guidance_scale=2: the null class is not trained"):
        check_guidance(2, num_classes=3, label_dropout=0)
