import pytest
import torch
from torch import nn

from unet_diffusion.models import UNet
from unet_diffusion.models.layers import ResidualBlock


def random_net(**arguments: int) -> UNet:
    """A small network without zero-initialized layers: its output depends on every input."""
    torch.manual_seed(0)
    net = UNet((16, 32), num_attention_resolutions=1, num_classes=3, emb_dim=16, **arguments)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.eval()


@pytest.fixture
def net() -> UNet:
    return random_net()


def test_initial_output_is_zero_and_blocks_are_the_identity():
    output = UNet(num_attention_resolutions=2)(torch.randn(2, 1, 16, 16), torch.rand(2))
    assert torch.equal(output, torch.zeros(2, 1, 16, 16))
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(ResidualBlock(16, 16, 8, 0.0, attention=True)(x, torch.randn(2, 8)), x)


def test_output_depends_on_t_and_class(net: UNet):
    x, t = torch.randn(1, 1, 16, 16).expand(4, -1, -1, -1), torch.tensor([0.3, 0.3, 0.3, 0.30001])
    output = net(x, t, torch.tensor([0, 1, -1, 0]))
    distances = [(output[0] - output[i]).abs().max().item() for i in (1, 2, 3)]
    assert min(distances[:2]) > 1e-3
    assert 0 < distances[2] < 1e-4  # continuous in t
    torch.testing.assert_close(net(x[:1], t[:1])[0], output[2])  # no label: the null class


def test_images_of_a_batch_are_independent(net: UNet):
    x, t, label = torch.randn(5, 1, 16, 16), torch.rand(5), torch.tensor([0, 1, 2, -1, 0])
    single = [net(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(net(x, t, label), torch.cat(single), rtol=1e-4, atol=1e-4)


def test_pixels_of_a_patch_stay_in_place():
    net = UNet(channels=(16,), patch_size=2)
    nn.init.dirac_(net.stem.weight)  # the first 4 channels are the pixels of a patch
    nn.init.zeros_(net.stem.bias)
    net.out = nn.Conv2d(16, 4, kernel_size=1, bias=False)
    nn.init.dirac_(net.out.weight)
    net.decoder = nn.ModuleList()
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(net(x, torch.rand(2)), x)  # the other blocks are the identity


def test_every_parameter_has_a_gradient(net: UNet):
    label = torch.tensor([0, 1, 2, -1] * 2)
    net(torch.randn(8, 1, 16, 16), torch.rand(8), label).square().mean().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_memory_format_does_not_change_the_output():
    net = random_net(patch_size=2)
    x, t = torch.randn(2, 1, 16, 16), torch.rand(2)
    expected = net(x, t)
    channels_last = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(channels_last(x, t), expected, rtol=1e-4, atol=1e-4)


def test_every_divisible_size_works():
    for channels, patch_size, size in (((16, 16, 16), 1, (12, 20)), ((16, 16), 3, (12, 18))):
        net = UNet(channels, image_channels=3, patch_size=patch_size)
        assert net(torch.randn(2, 3, *size), torch.rand(2)).shape == (2, 3, *size)
        assert all(side % net.size_multiple == 0 for side in size)


@pytest.mark.parametrize(
    ("argument", "values"),
    [("channels", [[], [32, 0]]), ("num_blocks", [0]), ("patch_size", [0, -2])],
)
def test_invalid_arguments_raise(argument: str, values: list):
    for value in values:
        with pytest.raises(ValueError, match=f"^{argument}=.*: "):
            UNet(**{argument: value})
