"""From a part of a config, a `_target_` with arguments, to the object."""

import dataclasses
import functools
import inspect
import pydoc
from typing import Any

from pydantic import ValidationError, validate_call

from unet_diffusion.errors import STRICT, UserError, describe
from unet_diffusion.experiment.compose import other_choices

_PACKAGE = "unet_diffusion."


def construct(part: Any, key: str, **further: Any) -> Any:
    """The object of a part, with `further` arguments; parts among its arguments are built too.

    With `_partial_`, as in the optimizer, a function that takes the other arguments. Arguments of
    this package's classes are checked against the types of their constructors. An unknown class or
    argument, or a value that is not allowed, is a UserError that starts with the dotted `key`.
    """
    try:
        target = pydoc.locate(part["_target_"])
    except pydoc.ErrorDuringImport as error:
        raise UserError(f"{key}._target_={part['_target_']}: {error.value}") from error
    if not callable(target):
        raise UserError(f"{key}._target_={part['_target_']}: no such class.")
    arguments = {name: value for name, value in part.items() if not name.startswith("_")}
    _check_names(target, key, arguments)
    arguments = {name: _nested(value, f"{key}.{name}") for name, value in arguments.items()}
    call = functools.partial(_call, target, key, **arguments, **further)
    return call if part.get("_partial_") and key == "optimizer" else call()


def part_of(item: Any) -> dict[str, Any]:
    """The part from which `construct` makes an equal dataclass, such as a sampler."""
    target = f"{type(item).__module__}.{type(item).__qualname__}"
    names = [field.name for field in dataclasses.fields(item) if field.init]
    return {"_target_": target, **{name: getattr(item, name) for name in names}}


def _check_names(target: Any, key: str, arguments: dict[str, Any]) -> None:
    """Checks that the target has these arguments, and booleans, which torch does not check."""
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # of a class that is not written in Python
        return
    accepts_any = any(each.kind == each.VAR_KEYWORD for each in parameters.values())
    for name, value in arguments.items():
        if name not in parameters and not accepts_any:
            known = ", ".join(parameters) or "no keys"
            hint = other_choices(f"{key}.{name}")
            raise UserError(f"{key}.{name}: unknown key. {target.__name__} has {known}.{hint}")
        type_ = parameters[name].annotation if name in parameters else None
        if type_ in (bool, bool | None) and not isinstance(value, type_):
            raise UserError(f"{key}.{name}={value}: should be a valid boolean.")


def _nested(value: Any, key: str) -> Any:
    is_part = isinstance(value, dict) and "_target_" in value
    return construct(value, key) if is_part else value


def _call(target: Any, key: str, /, *args: Any, **arguments: Any) -> Any:
    is_ours = inspect.isclass(target) and f"{target.__module__}.".startswith(_PACKAGE)
    has_types = is_ours and inspect.isfunction(target.__init__)
    try:
        if not has_types:
            return target(*args, **arguments)
        created: Any = object.__new__(target)  # pydantic checks functions, not classes
        validate_call(config=STRICT)(target.__init__)(created, *args, **arguments)
        return created
    except UserError:
        raise
    except ValidationError as error:
        raise UserError(describe(error, key)) from error
    except (TypeError, ValueError, IndexError) as error:
        if has_types and not isinstance(error, ValueError):
            raise  # a bug, not a value
        name, equals, _ = str(error).partition("=")
        is_argument = bool(equals) and name in arguments
        raise UserError(f"{key}.{error}" if is_argument else f"{key}: {error}") from error
