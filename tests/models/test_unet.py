import pytest
import torch
from torch import nn

from unet_diffusion.models import UNet
from unet_diffusion.models.blocks import Attention, ResidualBlock


@pytest.fixture
def awake() -> UNet:
    """A small network whose zero-initialised ends have been moved, so that its answer depends on everything."""
    torch.manual_seed(0)
    net = UNet(channels=(16, 32), attention=1, num_classes=3, embedding=16)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.eval()


def count_by_hand(widths: tuple[int, ...], blocks: int, told: int, colours: int) -> int:
    """Weights and biases by the table of the network: convolution, norm, block."""

    def conv(a: int, b: int, k: int) -> int:
        return a * b * k * k + b

    def block(a: int, b: int) -> int:
        return 2 * a + conv(a, b, 3) + (told + 1) * 2 * b + 2 * b + conv(b, b, 3) + (conv(a, b, 1) if a != b else 0)

    total = (64 + 1) * told + (told + 1) * told + conv(colours, widths[0], 3)
    width, skips = widths[0], [widths[0]]
    for i, wide in enumerate(widths):
        if i:
            total += conv(width, width, 3)
            skips.append(width)
        for _ in range(blocks):
            total += block(width, wide)
            width = wide
            skips.append(width)
    total += block(width, width)
    for i, wide in reversed(list(enumerate(widths))):
        for _ in range(blocks + 1):
            total += block(width + skips.pop(), wide)
            width = wide
        total += conv(width, width, 3) if i else 0
    return total + 2 * width + conv(width, colours, 3)


@pytest.mark.parametrize(
    ("widths", "blocks", "colours", "known"), [((32, 64, 96), 1, 1, 1_567_297), ((16,), 2, 3, None), ((48, 48), 3, 1, None)]
)
def test_the_number_of_parameters(widths: tuple[int, ...], blocks: int, colours: int, known: int | None):
    net = UNet(channels=widths, blocks=blocks, image_channels=colours)
    found = sum(p.numel() for p in net.parameters())
    assert found == count_by_hand(widths, blocks, 128, colours)
    assert known in (None, found)


def test_it_begins_by_answering_nothing():
    answer = UNet(attention=2)(torch.randn(2, 1, 16, 16), torch.rand(2))
    assert torch.equal(answer, torch.zeros(2, 1, 16, 16))


def test_its_blocks_begin_as_the_identity():
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(ResidualBlock(16, 16, 8, 0.0, Attention(16))(x, torch.randn(2, 8)), x)


def test_it_hears_the_level_and_the_class(awake: UNet):
    x, t = torch.randn(1, 1, 16, 16).expand(4, -1, -1, -1), torch.tensor([0.3, 0.3, 0.3, 0.30001])
    answer = awake(x, t, torch.tensor([0, 1, -1, 0]))
    distances = [(answer[0] - answer[i]).abs().max().item() for i in (1, 2, 3)]
    assert min(distances[:2]) > 1e-3
    assert 0 < distances[2] < 1e-4  # close levels, close answers
    torch.testing.assert_close(awake(x[:1], t[:1])[0], answer[2])  # no label is the null class


def test_images_of_a_batch_do_not_see_each_other(awake: UNet):
    x, t, label = torch.randn(5, 1, 16, 16), torch.rand(5), torch.tensor([0, 1, 2, -1, 0])
    alone = torch.cat([awake(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(awake(x, t, label), alone, rtol=1e-4, atol=1e-4)


def test_every_parameter_learns(awake: UNet):
    awake(torch.randn(8, 1, 16, 16), torch.rand(8), torch.tensor([0, 1, 2, -1] * 2)).square().mean().backward()
    silent = [name for name, p in awake.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_memory_order_changes_nothing(awake: UNet):
    x, t = torch.randn(2, 1, 16, 16), torch.rand(2)
    expected = awake(x, t)
    plain = awake.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(plain(x, t), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "sizes"), [((16, 16, 16), (12, 20)), ((16,), (5, 7))])
def test_any_size_that_can_be_halved(channels: tuple[int, ...], sizes: tuple[int, int]):
    net = UNet(channels=channels, image_channels=3, image_size=sizes)
    assert net(torch.randn(2, 3, *sizes), torch.rand(2)).shape == (2, 3, *sizes)
    assert all(size % net.size_multiple == 0 for size in sizes)


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ({"channels": []}, "channels"),
        ({"channels": [32, 0]}, "channels"),
        ({"blocks": [1, 2]}, "blocks"),
        ({"blocks": 0}, "blocks"),
        ({"attention": -1}, "attention"),
        ({"image_channels": 2}, "image_channels"),
        ({"image_size": 18}, "image_size"),
        ({"num_classes": -1}, "num_classes"),
        ({"embedding": 0}, "embedding"),
        ({"dropout": 1}, "dropout"),
    ],
)
def test_impossible_arguments_are_refused(typed: dict, named: str):
    with pytest.raises(ValueError, match=f"^{named}="):
        UNet(**typed)
