import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unet_diffusion.models.lesson_unet import DownBlock, LessonUNet, UpBlock


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_parameter_counts_are_the_lessons():
    assert parameters(LessonUNet(dense_bottleneck=True)) == 234_977
    assert parameters(LessonUNet(dense_bottleneck=False)) == 167_329


def by_hand(net: LessonUNet, x: Tensor, halvings: int, dense: bool) -> Tensor:
    """The issue's table written out with functions, taking the tensors in the order in which the modules are registered."""
    tensors = iter(net.state_dict().values())

    def take(count: int) -> list[Tensor]:
        return [next(tensors) for _ in range(count)]

    def normed(x: Tensor) -> Tensor:
        gamma, beta, mean, var, _ = take(5)
        return F.relu(F.batch_norm(x, mean, var, gamma, beta))

    def conv(x: Tensor) -> Tensor:
        weight, bias = take(2)
        return F.conv2d(x, weight, bias, padding=1)

    x = normed(conv(x))
    skips = []
    for _ in range(halvings):
        x = F.max_pool2d(normed(conv(normed(conv(x)))), 2)
        skips.append(x)
    small = x.shape
    x = F.relu(x.flatten(1))
    if dense:
        for _ in range(3):
            weight, bias = take(2)
            x = F.relu(F.linear(x, weight, bias))
    x = normed(conv(x.view(small)))
    for skip in reversed(skips):
        weight, bias = take(2)
        x = F.conv_transpose2d(torch.cat([x, skip], 1), weight, bias, stride=2, padding=1, output_padding=1)
        x = normed(conv(normed(x)))
    x = conv(normed(conv(x)))
    assert next(tensors, None) is None
    return x


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(
    ("channels", "image_channels", "size"), [((16, 32, 64), 1, (16, 16)), ((4, 6), 3, (6, 10)), ((3, 5, 7, 9), 3, (16, 8))]
)
def test_forward_is_the_table(dense: bool, channels: tuple[int, ...], image_channels: int, size: tuple[int, int]):
    torch.manual_seed(0)
    net = LessonUNet(channels, image_channels, size, dense)
    x = torch.randn(4, image_channels, *size)
    net(x)  # moves the running statistics off their start, so that using the wrong ones would show
    net.eval()
    torch.testing.assert_close(net(x), by_hand(net, x, len(channels) - 1, dense))


def test_it_is_blind_and_takes_labels():
    net = LessonUNet().eval()
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(net(x), net(x, torch.tensor([0.1, 0.9]), torch.tensor([3, 4])))


def test_every_parameter_gets_a_gradient():
    for dense in (True, False):
        net = LessonUNet(dense_bottleneck=dense)
        net(torch.randn(8, 1, 16, 16)).square().mean().backward()
        assert all(p.grad is not None for p in net.parameters())


def test_without_the_dense_bottleneck_any_fitting_size_works():
    net = LessonUNet(dense_bottleneck=False).eval()
    x = torch.randn(1, 1, 24, 40)
    torch.testing.assert_close(net(x), by_hand(net, x, 2, dense=False))


def test_blocks_halve_and_double():
    x = torch.randn(2, 3, 8, 12)
    down = DownBlock(3, 5)(x)
    assert down.shape == (2, 5, 4, 6)
    assert UpBlock(5, 3)(down, down).shape == x.shape


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"image_size": 18}, "image_size=18 .* nearest sizes that fit: 16 or 20$"),
        ({"image_size": 2}, "image_size=2 .* fit: 4$"),
        ({"image_size": [16, 18]}, r"image_size=\[16, 18\] .* fit: \[16, 16 or 20\]$"),
        ({"image_size": 0}, "image_size=0 must be"),
        ({"channels": ()}, "two or more widths"),
        ({"channels": (16,)}, "two or more widths"),
        ({"channels": (16, 0)}, "channels=0 must be"),
        ({"image_channels": 2}, "image_channels=2 must be 1"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict, said: str):
    with pytest.raises(ValueError, match=said):
        LessonUNet(**arguments)
