import torch

from unet_diffusion.diffusion import LinearSchedule
from unet_diffusion.training.camera_noise import camera_file, camera_noise

SCHEDULE = LinearSchedule()


def test_eps_and_t_give_the_noisy_image():
    torch.manual_seed(0)
    x0 = torch.rand(4, 3, 64, 64) - 0.5
    eps, t = camera_noise(x0, torch.full((4,), 0.3), SCHEDULE)
    noisy = SCHEDULE.add_noise(x0, eps, t) / SCHEDULE.alpha(t)[:, None, None, None]
    stored = (noisy + 1) * 127.5
    torch.testing.assert_close(stored, stored.round(), atol=1e-2, rtol=0)  # of 8 bits
    assert ((stored > -0.1) & (stored < 255.1)).all()


def test_the_time_is_that_of_the_noise_level():
    torch.manual_seed(0)
    x0 = torch.zeros(32, 3, 64, 64)
    eps, t = camera_noise(x0, torch.full((32,), 0.3), SCHEDULE)
    std = t / (1 - t) * eps.std(dim=(1, 2, 3))
    half = 0.15 / 0.85
    assert (std < 1.05 * half).all()  # JPEG removes some
    assert (eps.std(dim=(1, 2, 3)) < 2.05).all()
    assert 0.9 * half < std.max()


def test_noise_grows_with_brightness_in_some_images():
    torch.manual_seed(0)
    x0 = torch.linspace(-0.8, 0.8, 64).expand(3, 64, 64)
    ratios = []
    for _ in range(20):
        error = camera_file(x0, torch.tensor(0.05)) - x0
        ratios.append(float(error[..., 40:].std() / error[..., :24].std()))
    assert min(ratios) < 1.2 < 1.8 < max(ratios)
