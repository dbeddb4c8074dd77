import pytest

from unet_diffusion.checks import fraction, image_size_of, number, whole_number


def test_good_values_come_back():
    assert whole_number("n", 3, at_least=0) == 3
    assert number("x", 2, low=0) == 2.0
    assert (fraction("p", 0), fraction("p", 1)) == (0.0, 1.0)
    assert image_size_of(16) == (16, 16)
    assert image_size_of([16, 24]) == (16, 24)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None])
def test_not_a_whole_number(value: object):
    with pytest.raises(ValueError, match=f"^n={value} must be a whole number of 1 or more$"):
        whole_number("n", value, at_least=1)


@pytest.mark.parametrize("value", ["16", [16], [1, 2, 3], 0, [16, -1], [16, 1.5], None])
def test_not_an_image_size(value: object):
    with pytest.raises(ValueError, match=r"^image_size="):
        image_size_of(value)
