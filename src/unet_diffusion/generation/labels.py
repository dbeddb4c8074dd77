"""Class labels by index or name."""

import difflib
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from unet_diffusion.diffusion.denoiser import NULL_LABEL
from unet_diffusion.errors import UserError


def class_labels(
    label: str | int | None, n: int, num_classes: int, class_names: Sequence[str]
) -> Tensor | None:
    """Class labels (n,) of `n` images; None for an unconditional network (`num_classes` 0).

    `label` is a class name, an index, or a name without its case and punctuation, in this order;
    `all`: the classes in turn; `none` or None: the null class; `auto`: `all` for networks with
    classes. A class that has one of these names is selected by it.
    """
    if num_classes == 0:
        if label in (None, "auto", "none"):
            return None
        raise UserError(f"label={label}: the network has no classes. Omit label.")
    if label == "auto" or (label == "all" and label not in class_names):
        return torch.arange(n) % num_classes
    if label is None or (label == "none" and label not in class_names):
        return torch.full((n,), NULL_LABEL)
    name, names = str(label), list(class_names)
    if name not in names and name.isdecimal() and int(name) < num_classes:
        return torch.full((n,), int(name))
    plain = _without_punctuation(name)
    found = [each for each in names if plain and _without_punctuation(each) == plain]
    found = [name] if name in names else found
    if len(found) == 1:
        return torch.full((n,), names.index(found[0]))
    if found:
        raise UserError(f"label={label}: expected exactly one of {', '.join(found)}.")
    close = difflib.get_close_matches(str(label), class_names, n=1)
    raise UserError(
        f"label={label}: expected all, none, 0 to {num_classes - 1}, or one of "
        f"{', '.join(class_names[:10])}." + (f" Did you mean {close[0]}?" if close else "")
    )


def _without_punctuation(name: str) -> str:
    return re.sub(r"\W", "", name.lower())  # tshirttop
