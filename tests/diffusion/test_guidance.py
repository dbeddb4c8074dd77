import pytest
import torch

from unet_diffusion.diffusion import Denoiser, GuidedDenoiser, LinearSchedule, X0Prediction, image_noise, slerp
from unet_diffusion.diffusion.guidance import check_guidance


class Labelled(torch.nn.Module):
    num_classes = 3

    def forward(self, xt, t, label):
        return xt + 10 * label[:, None, None, None] + t[:, None, None, None]


DENOISER = Denoiser(Labelled(), LinearSchedule(), X0Prediction())


def test_guidance_moves_away_from_the_guess_without_a_class():
    xt, t, label = torch.randn(3, 1, 2, 2), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 2, -1])
    told, untold = DENOISER(xt, t, label), DENOISER(xt, t, torch.full_like(label, -1))
    torch.testing.assert_close(GuidedDenoiser(DENOISER, 1.5)(xt, t, label), told + 1.5 * (told - untold))
    torch.testing.assert_close(GuidedDenoiser(DENOISER, 1.5)(xt, t, label)[2], untold[2])  # no class, no guidance
    assert torch.equal(GuidedDenoiser(DENOISER, 0)(xt, t, label), told)


def test_it_costs_two_evaluations_where_it_does_anything():
    assert (GuidedDenoiser(DENOISER, 0).evaluations, GuidedDenoiser(DENOISER, 0.5).evaluations) == (1, 2)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), "strong"])
def test_an_impossible_weight_is_refused(weight: object):
    with pytest.raises(ValueError, match=r"^guidance="):
        GuidedDenoiser(DENOISER, weight)


def test_guidance_needs_classes_and_a_null_class():
    check_guidance(0, classes=0, label_dropout=0)
    check_guidance(1, classes=10, label_dropout=0.1)
    with pytest.raises(ValueError, match=r"^guidance=1 needs a network that knows classes"):
        check_guidance(1, classes=0, label_dropout=0.1)
    with pytest.raises(ValueError, match=r"^guidance=1 needs the null class"):
        check_guidance(1, classes=10, label_dropout=0)


def test_the_way_between_two_noises_keeps_their_length():
    a, b = image_noise(0, range(4), (1, 16, 16)), image_noise(1, range(4), (1, 16, 16))
    torch.testing.assert_close(slerp(a, b, 0), a)
    torch.testing.assert_close(slerp(a, b, 1), b)
    middle = slerp(a, b, 0.5)
    # half the angle to each end (the lengths of a and b differ a little)
    to_a, to_b, whole = (
        torch.nn.functional.cosine_similarity(x.flatten(1), y.flatten(1)).acos() for x, y in ((middle, a), (middle, b), (a, b))
    )
    torch.testing.assert_close(to_a + to_b, whole)
    torch.testing.assert_close(to_a, whole / 2, rtol=0.1, atol=0)
    assert middle.std().item() == pytest.approx(1, rel=0.05)
    assert torch.lerp(a, b, 0.5).std().item() < 0.8  # a straight way would fade
    torch.testing.assert_close(slerp(a, a, 0.3), a)
