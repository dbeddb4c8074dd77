"""Which class each drawn image is asked to be."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unet_diffusion.checks import shortened
from unet_diffusion.diffusion.guidance import NO_CLASS


def labels_for(asked: object, count: int, num_classes: int, class_names: Sequence[str]) -> Tensor | None:
    """Class numbers (count,) for `count` images; None for a network without classes.

    Args:
        asked: a class number or name; `all`: every class in turn; `none`: no class; `auto`: `all` where there are classes.
        count: how many images.
        num_classes: how many classes the network knows, 0 for none.
        class_names: of the network's classes, as far as they have names.

    Raises:
        ValueError: there is no such class.
    """
    if num_classes == 0:
        if asked in ("auto", "none", None):
            return None
        raise ValueError(
            f"label={shortened(asked)} cannot be drawn, as this run's network knows no classes: "
            f"train one that does, such as experiment=06_classes, or leave label= out"
        )
    if asked in ("auto", "all", None):
        return torch.arange(count) % num_classes
    if asked == "none":
        return torch.full((count,), NO_CLASS)
    names = [_plain(name) for name in class_names]
    if (wanted := _plain(asked)) in names:  # before the numbers, as names can be numbers too
        return torch.full((count,), names.index(wanted))
    if isinstance(asked, int) and not isinstance(asked, bool) and 0 <= asked < num_classes:
        return torch.full((count,), asked)
    known = ", ".join(class_names) or "no names"
    raise ValueError(
        f"label={shortened(asked)} is no class of this run: give a number from 0 to {num_classes - 1}, one of {known}, "
        f"or all or none"
    )


def rows_by_class(images: Tensor, label: Tensor, columns: int) -> Tensor:
    """The first `columns` images of each class, class by class, as images for a grid with a row a class."""
    classes = sorted(set(label.tolist()))
    least = min(columns, *(int((label == c).sum()) for c in classes))
    return torch.cat([images[label == c][:least] for c in classes])


def _plain(name: object) -> str:
    """A name without regard to case, blanks and signs: `T-shirt/top` is `tshirttop`."""
    return "".join(c for c in str(name).lower() if c.isalnum())
