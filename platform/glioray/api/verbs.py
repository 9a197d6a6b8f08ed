"""A verb's function, made of its request type: keyword arguments in, the result out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_type_hints

P = ParamSpec("P")
Q = TypeVar("Q")
R = TypeVar("R")


def as_verb(request_type: Callable[P, Q]) -> Callable[[Callable[[Q], R]], Callable[P, R]]:
    """Make a function of a request a function of the request's fields, with their signature and descriptions.

    The function of the request stays reachable as `carry_out`.
    """
    build: Callable[..., Q] = request_type.of  # type: ignore[attr-defined]

    def decorate(carry_out: Callable[[Q], R]) -> Callable[P, R]:
        @functools.wraps(carry_out)
        def verb(*args: P.args, **fields: P.kwargs) -> R:
            return carry_out(build(*args, **fields))

        fields: dict[str, Any] = request_type.model_fields  # type: ignore[attr-defined]
        listed = [f"    {name}: {field.description}." for name, field in fields.items()]
        intro, raises, rest = (inspect.getdoc(carry_out) or "").partition("\nReturns:")
        verb.__doc__ = "\n".join([intro.rstrip(), "", "Args:", *listed, "", (raises + rest).lstrip()])
        hints = get_type_hints(request_type)
        signature = inspect.signature(request_type)
        parameters = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]
        returned = inspect.signature(carry_out).return_annotation
        verb.__signature__ = signature.replace(parameters=parameters, return_annotation=returned)  # type: ignore[attr-defined]
        verb.carry_out = carry_out  # type: ignore[attr-defined]
        return verb

    return decorate
