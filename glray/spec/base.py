"""What every spec shares: frozen, no unknown keys, fields documented where they stand."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

FILE_FIELDS = ("init", "path", "paths")
"""Fields, at any depth, that name files or folders which are read."""

MAX_NAME = 80
"""Characters of a name."""

Name = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME)
]
"""A name that is also a directory's name: letters, digits, dot, underscore and dash."""


def _read_power_of_ten(value: object) -> object:
    """The number in ``"1e9"``: YAML 1.1 reads a power of ten without a dot and a sign as text."""
    if isinstance(value, str) and "e" in value.lower():
        with suppress(ValueError):
            return float(value)
    return value


Integer = Annotated[int, BeforeValidator(_read_power_of_ten)]
"""A whole number as people write it: ``360_000_000``, ``1e9``, ``0.36e9``."""

Count = Annotated[Integer, Field(ge=1)]
"""A whole number of at least 1."""

Seed = Annotated[Integer, Field(ge=0, lt=2**63)]
"""A seed of runs."""


class Spec(BaseModel):
    """Base of all specs: a frozen value that rejects keys it does not know.

    Whether fields fit together is checked in ``model_post_init``, whose ValueError is a problem of
    the spec like any other.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _no_nul(cls, value: object) -> object:
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and "\0" in text:
                raise ValueError(f"{text!r} has a NUL character, which no path can have; remove it")
        return value

    @model_validator(mode="before")
    @classmethod
    def _no_boolean_number(cls, declared: object) -> object:
        """``yes`` in YAML is true, which Python counts as 1."""
        for name, value in declared.items() if isinstance(declared, dict) else ():
            field = cls.model_fields.get(name)
            if field is None or not isinstance(value, bool):
                continue
            if bool not in (field.annotation, *get_args(field.annotation)):
                raise ValueError(
                    f"{name}: {str(value).lower()} is neither a number nor text; give one, text "
                    "like yes and no in quotes"
                )
        return declared

    def derive(self, **changes: object) -> Self:
        """A validated copy with ``changes``: mappings merge into the specs they name, at every
        depth; anything else replaces the field.

            spec.derive(compute={"groups": 1}, budget={"tokens": 5, "seconds": None})

        A spec given as a value replaces the one that was there, and so does a mapping with another
        ``kind``. Fields that were never set take their defaults again. Raises
        ``pydantic.ValidationError``.
        """
        return type(self).model_validate(self._merged(changes))

    def _merged(self, changes: Mapping[str, object]) -> dict[str, object]:
        """The fields that were set, with the changes."""
        declared: dict[str, Any] = {
            name: value
            for name, value in self
            if name in self.model_fields_set or name == "kind"  # what tells a union's specs apart
        }
        for name, change in changes.items():
            current = getattr(self, name, None)
            if isinstance(current, Spec) and isinstance(change, Mapping):
                kind = getattr(current, "kind", None)
                if change.get("kind", kind) == kind:
                    change = current._merged(change)
            declared[name] = change
        return declared


def check_unique(field: str, kind: str, names: Sequence[str], consequence: str) -> None:
    """Raises ValueError, which says the consequence, if two of a field's items share a name; its
    ``kind`` is ``name`` or ``label``."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{field}: {names.count(name)} {field} have the {kind} {name!r}, so {consequence}; "
                "rename one of them"
            )


def named_files(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Field and path of every file and folder that a spec reads: ``corpus.sources.0.paths``."""
    if isinstance(value, Spec):
        for name, below in value:
            yield from named_files(below, f"{place}.{name}" if place else name)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from named_files(item, place if isinstance(item, str) else f"{place}.{index}")
    elif isinstance(value, str) and place.rpartition(".")[2] in FILE_FIELDS:
        yield place, value
