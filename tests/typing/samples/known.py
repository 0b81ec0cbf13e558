"""`assert_type`, which type checkers judge, and which at run time looks at the value as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["assert_type"]

if TYPE_CHECKING:
    from typing_extensions import assert_type
else:
    import types
    import typing

    def assert_type(value, form):
        """Return `value`, having seen that it is of the class that `form` names."""
        unions = (typing.Union, types.UnionType)
        parts = typing.get_args(form) if typing.get_origin(form) in unions else (form,)
        classes = [typing.get_origin(part) or part for part in parts]
        if typing.Any not in classes:
            known = tuple(type(None) if each is None else each for each in classes)
            assert isinstance(value, known), f"{value!r} is no {form}"
        return value
