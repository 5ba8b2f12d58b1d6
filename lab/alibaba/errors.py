"""The error an API answers, and the parameters it reads.

Known from ("doc" is an Alibaba help page, "seen" a real answer quoted in public):

    Missing{Parameter} "{Parameter} is mandatory for this action."       400  doc 48054, common errors
    Invalid{Parameter} "Specified parameter {Parameter} is not valid."   400  doc 53438; seen for Version
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

Parameters = Mapping[str, str]
Action = Callable[[str, Parameters], dict[str, Any]]
Item = TypeVar("Item")


class ApiError(Exception):
    """An error answer of the service; `detail` is added to its body as it is."""

    def __init__(self, code: str, message: str, status: int = 400, detail: dict[str, Any] | None = None):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        self.detail = detail or {}


def missing(name: str) -> ApiError:
    """The answer to a request without a mandatory parameter."""
    return ApiError(f"Missing{name}", f"{name} is mandatory for this action.")


def invalid(name: str) -> ApiError:
    """The answer to a parameter of the wrong type or outside its range."""
    return ApiError(f"Invalid{name}", f"Specified parameter {name} is not valid.")


def required(parameters: Parameters, name: str) -> str:
    """The value of a mandatory parameter; an empty one counts as missing."""
    value = parameters.get(name, "")
    if not value:
        raise missing(name)
    return value


def integer(parameters: Parameters, name: str, default: int, minimum: int, maximum: int) -> int:
    """The value of a number parameter, or the default where it is absent or empty."""
    text = parameters.get(name, "")
    if not text:
        return default
    # int() would also take "1_0", " 1" and digits of other scripts, and is quadratic in very long ones.
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and minimum <= int(text) <= maximum):
        raise invalid(name)
    return int(text)


def choice(parameters: Parameters, name: str, choices: Sequence[str]) -> str | None:
    """The value of an enumerated parameter in the enumeration's spelling, None where it is absent."""
    text = parameters.get(name, "")
    if not text:
        return None
    for value in choices:
        if value.lower() == text.lower():
            return value
    raise invalid(name)


def page(
    items: Sequence[Item],
    parameters: Parameters,
    size: int,
    maximum_size: int,
    maximum_number: int = 10**9,
) -> tuple[dict[str, int], Sequence[Item]]:
    """The paging fields of the answer, and the items of the page that was asked for."""
    number = integer(parameters, "PageNumber", 1, 1, maximum_number)
    size = integer(parameters, "PageSize", size, 1, maximum_size)
    fields = {"TotalCount": len(items), "PageNumber": number, "PageSize": size}
    return fields, items[(number - 1) * size : number * size]
