"""Errors that a user can correct, and how arguments are checked."""

import re

from pydantic import ConfigDict, ValidationError

STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
"""pydantic settings: no conversion between types, so `flip=no` is an error and not true."""
_MESSAGES = {
    "extra_forbidden": "no such key",
    **dict.fromkeys(("dict_type", "model_type"), "expected keys"),
}
_UNION_MEMBER = re.compile(r"^(bool|int|float|str)$|[\[-]")


class UserError(ValueError):
    """Invalid input: scripts print it on one line, without a traceback, and exit with status 2."""


def describe(error: ValidationError, key: str = "") -> str:
    """The first error of pydantic on one line: key, value, and what is allowed."""

    def path(location: tuple[int | str, ...]) -> str:
        # pydantic appends the member of a union, such as `int` or `literal['auto']`.
        parts = [str(part) for part in location]
        return ".".join([key] * bool(key) + [p for p in parts if not _UNION_MEMBER.search(p)])

    first, *others = error.errors()
    same_key = [each for each in others if path(each["loc"]) == path(first["loc"])]
    messages = [_MESSAGES.get(each["type"], each["msg"]) for each in (first, *same_key)]
    message = " or ".join(dict.fromkeys(messages)).removeprefix("Value error, ")
    message = message.replace("or Input should be", "or")
    message = re.sub("(Input|String|List) should", "should", message)
    has_value = not isinstance(first["input"], dict) and first["type"] != "missing_argument"
    value = f"={first['input']}" if has_value else ""
    return f"{path(first['loc'])}{value}: {message.removesuffix('.')}."
