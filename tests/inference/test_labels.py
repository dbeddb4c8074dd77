import pytest
import torch

from unet_diffusion.inference.labels import labels_for, rows_by_class

NAMES = ("T-shirt/top", "trouser", "ankle-boot")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("auto", [0, 1, 2, 0, 1]),
        ("all", [0, 1, 2, 0, 1]),
        ("none", [-1] * 5),
        (2, [2] * 5),
        ("trouser", [1] * 5),
        ("Ankle Boot", [2] * 5),
        ("tshirt/top", [0] * 5),
    ],
)
def test_classes_by_number_and_name(asked: object, expected: list[int]):
    assert labels_for(asked, 5, 3, NAMES).tolist() == expected


@pytest.mark.parametrize("asked", [3, -1, "shoe", 1.5, True, ""])
def test_an_unknown_class_is_answered_with_the_known_ones(asked: object):
    with pytest.raises(ValueError, match=r"^label=.* is no class of this run: give a number from 0 to 2, one of T-shirt/top"):
        labels_for(asked, 5, 3, NAMES)


def test_a_class_whose_name_is_a_number_goes_by_its_name():
    assert labels_for(1, 2, 3, ("3", "2", "1")).tolist() == [2, 2]


def test_a_network_without_classes_takes_none():
    assert labels_for("auto", 5, 0, NAMES) is None
    assert labels_for("none", 5, 0, NAMES) is None
    with pytest.raises(ValueError, match=r"^label=1 cannot be drawn, as this run's network knows no classes"):
        labels_for(1, 5, 0, NAMES)


def test_a_row_a_class():
    label = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    images = torch.arange(7.0).view(7, 1, 1, 1)
    assert rows_by_class(images, label, columns=5).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert rows_by_class(images, label, columns=1).flatten().tolist() == [0, 1, 2]
