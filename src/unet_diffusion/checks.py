"""Checks of arguments that come from configs. Each message begins with the argument's name, so that a path can precede it."""

import math
from collections.abc import Iterable, Sequence
from functools import partial

from unet_diffusion.errors import printable

MOST_SEED = 2**32 - 1
"""The largest seed that all generators take."""
MOST_PIXELS_A_SIDE = 2048
"""Of the images that networks are trained on."""


def whole_number(name: str, value: object, *, at_least: int, at_most: int | None = None) -> int:
    """`value` as an int.

    Raises:
        ValueError: it is not a whole number, or it is below `at_least` or above `at_most`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name}={shortened(value)} must be a whole number of {at_least} or more")
    if at_most is not None and value > at_most:
        raise ValueError(f"{name}={shortened(value)} must be a whole number of at most {at_most}")
    return value


def seed_number(name: str, value: object) -> int:
    """`value` as a seed.

    Raises:
        ValueError: it is not a whole number from 0 to `MOST_SEED`.
    """
    return whole_number(name, value, at_least=0, at_most=MOST_SEED)


def shortened(value: object, most: int = 60) -> str:
    """`value` as a text on one line of at most so many characters, for messages."""
    if isinstance(value, partial):  # what a config describes where a number belongs
        return f"{getattr(value.func, '__name__', 'a function')}(...)"
    try:
        text = printable(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of very many digits"
    return text if len(text) <= most else f"{text[:most]}..."


def number(name: str, value: object, *, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a finite float in [low, high].

    Raises:
        ValueError: it is not a number, not finite, or out of the range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
        raise ValueError(f"{name}={shortened(value)} must be a number")
    if not low <= value <= high:
        allowed = f"{low:g} or more" if high == math.inf else f"between {low:g} and {high:g}"
        raise ValueError(f"{name}={shortened(value)} must be {allowed}")
    return float(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def fraction(name: str, value: object) -> float:
    """`value` as a float in [0, 1]; a likely percentage (30) is answered with the fraction that was meant (0.3).

    Raises:
        ValueError: it is not a number in [0, 1].
    """
    try:
        return number(name, value, low=0.0, high=1.0)
    except ValueError as error:
        if isinstance(value, (int, float)) and 2 <= value <= 100:
            raise ValueError(
                f"{name}={value} must be between 0 and 1: a fraction is meant, try {name}={value / 100:g}"
            ) from None
        raise ValueError(f"{error}, a fraction between 0 and 1" if "number" in str(error) else str(error)) from None


def one_of(name: str, value: object, choices: Iterable[str]) -> str:
    """`value`, which is one of `choices`.

    Raises:
        ValueError: it is not; lists them.
    """
    if value not in (listed := list(choices)):
        raise ValueError(f"{name}={shortened(value)} must be one of {', '.join(listed)}")
    return str(value)


def image_size_of(value: object) -> tuple[int, int]:
    """(height, width) in pixels from one number (a square) or a pair.

    Raises:
        ValueError: neither, or not positive.
    """
    sides = [value, value] if isinstance(value, int) else value
    if isinstance(sides, str) or not isinstance(sides, Sequence) or len(sides) != 2:
        raise ValueError(f"image_size={shortened(value)} must be a positive whole number or a pair [height,width]")
    height, width = (whole_number("image_size", side, at_least=1, at_most=MOST_PIXELS_A_SIDE) for side in sides)
    return height, width


def checked_widths(channels: object, *, at_least: int) -> tuple[int, ...]:
    """A U-Net's widths, `at_least` of them, from full resolution down.

    Raises:
        ValueError: too few, or one that is no whole number of 1 or more.
    """
    if isinstance(channels, str) or not isinstance(channels, Sequence) or len(channels) < at_least:
        enough = {1: "one or more widths", 2: "two or more widths"}[at_least]
        raise ValueError(f"channels={shortened(channels)} must list {enough}, for example [16,32,64]")
    return tuple(whole_number("channels", width, at_least=1) for width in channels)


def checked_size(image_size: object, *, halvings: int) -> tuple[int, int]:
    """(height, width) of images that can be halved that often.

    Raises:
        ValueError: they cannot; names the nearest sizes that can.
    """
    height, width = image_size_of(image_size)
    factor = 2**halvings
    if height % factor or width % factor:
        fitting = [_multiples_near(side, factor) for side in (height, width)]
        square = height == width
        raise ValueError(
            f"image_size={height if square else [height, width]} cannot be halved {halvings} times: 2**{halvings} = {factor} "
            f"must divide it; the nearest sizes that fit: {fitting[0] if square else f'[{fitting[0]}, {fitting[1]}]'}"
        )
    return height, width


def _multiples_near(side: int, factor: int) -> str:
    below, above = side // factor * factor, -(-side // factor) * factor
    return " or ".join(str(multiple) for multiple in sorted({below, above}) if multiple)


def whole_number_or_auto(name: str, value: object, *, at_least: int) -> int | None:
    """A whole number; None for `auto`.

    Raises:
        ValueError: it is neither.
    """
    if value == "auto":
        return None
    try:
        return whole_number(name, value, at_least=at_least)
    except ValueError as error:
        raise ValueError(f"{error}, or auto") from error
