import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unet_diffusion.models import LessonUNet


def test_parameter_counts_equal_the_lessons():
    for dense, count in ((True, 234_977), (False, 167_329)):
        net = LessonUNet(dense_bottleneck=dense)
        assert sum(p.numel() for p in net.parameters()) == count


def functional_forward(net: LessonUNet, x: Tensor, downsamplings: int, dense: bool) -> Tensor:
    """The lesson's forward pass in functions, with the tensors in the order of registration."""
    tensors = iter(net.state_dict().values())

    def take(count: int) -> list[Tensor]:
        return [next(tensors) for _ in range(count)]

    def bn_relu(x: Tensor) -> Tensor:
        gamma, beta, mean, var, _ = take(5)
        return F.relu(F.batch_norm(x, mean, var, gamma, beta))

    def conv(x: Tensor) -> Tensor:
        weight, bias = take(2)
        return F.conv2d(x, weight, bias, padding=1)

    x = bn_relu(conv(x))
    skips = []
    for _ in range(downsamplings):
        x = F.max_pool2d(bn_relu(conv(bn_relu(conv(x)))), 2)
        skips.append(x)
    small = x.shape
    x = F.relu(x.flatten(1))
    if dense:
        for _ in range(3):
            weight, bias = take(2)
            x = F.relu(F.linear(x, weight, bias))
    x = bn_relu(conv(x.view(small)))
    for skip in reversed(skips):
        weight, bias = take(2)
        x = torch.cat([x, skip], 1)
        x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
        x = bn_relu(conv(bn_relu(x)))
    x = conv(bn_relu(conv(x)))
    assert next(tensors, None) is None
    return x


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(
    ("channels", "image_channels", "size"),
    [((16, 32, 64), 1, (16, 16)), ((4, 6), 3, (6, 10)), ((3, 5, 7, 9), 3, (16, 8))],
)
def test_forward_equals_functional_forward(
    dense: bool, channels: tuple[int, ...], image_channels: int, size: tuple[int, int]
):
    torch.manual_seed(0)
    net = LessonUNet(channels, image_channels, size, dense)
    x = torch.randn(4, image_channels, *size)
    net(x).sum().backward()  # changes the running statistics: the wrong ones would show
    assert all(parameter.grad is not None for parameter in net.parameters())
    net.eval()
    x = x if dense else torch.randn(1, image_channels, 24, 40)
    torch.testing.assert_close(net(x), functional_forward(net, x, len(channels) - 1, dense))


def test_t_and_label_are_ignored():
    net = LessonUNet().eval()
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(net(x), net(x, torch.tensor([0.1, 0.9]), torch.tensor([3, 4])))


def test_size_is_free_without_the_dense_bottleneck_alone():
    assert LessonUNet(dense_bottleneck=False).size_multiple == 4
    assert LessonUNet(dense_bottleneck=True).size_multiple is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 18}, "image_size=18: .* 3 widths downsamples by 4, .* next size is 20\\."),
        ({"image_size": [16, 18]}, r"image_size=\[16, 18\]: .* next size is \[16, 20\]"),
        ({"image_size": 0}, "image_size=0: "),
        ({"channels": (16,)}, "channels=.* at least 2 widths"),
        ({"channels": (16, 0)}, "channels=.* at least 2 widths of at least 1"),
    ],
)
def test_invalid_arguments_raise(arguments: dict, message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        LessonUNet(**arguments)
