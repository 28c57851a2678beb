"""What every record shares: a frozen value that is one JSON file, or one line of one."""

from math import nan
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    ValidationError,
)
from pydantic import Field as _Field

from glray.errors import UserError
from glray.files import REMEDY, AnyPath, write_text


class Record(BaseModel):
    """Base of all records. JSON has no NaN and no infinity: both are written as null."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        ser_json_inf_nan="null",
        arbitrary_types_allowed=True,
    )

    remedy: ClassVar[str] = REMEDY
    """What to do about a file that cannot be read."""
    may_be_empty: ClassVar[bool] = False
    """Whether an empty file, which a failing machine leaves, is as good as none."""

    def write(self, path: AnyPath, *, sync: bool = True) -> None:
        """Replace the file at once; see ``glray.files.committed`` for ``sync``."""
        write_text(path, self.model_dump_json(indent=1) + "\n", sync=sync)

    @classmethod
    def read(cls, path: AnyPath) -> Self | None:
        """The record of a file; None if the file does not exist. Raises UserError if it holds
        anything else."""
        try:
            content = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        if cls.may_be_empty and not content:
            return None
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(map(str, problem["loc"]))
            raise UserError(
                f"{path}: damaged, or written by another version of glray "
                f"({f'{where}: ' if where else ''}{problem['msg']}); {cls.remedy}"
            ) from None


def measure(unit: str, clock: str | None = None, **field: Any) -> Any:
    """A field with its unit and, for a time or a rate, its clock: what ``docs/metrics.md`` shows
    beside the field's docstring."""
    return _Field(json_schema_extra={"unit": unit, "clock": clock}, **field)


Number = Annotated[float, BeforeValidator(lambda value: nan if value is None else value)]
"""A float; NaN where a run diverged."""


def _array(value: Any, dtype: type[np.generic] = np.float64) -> np.ndarray:
    try:
        array = np.array(value, dtype=dtype)  # null becomes NaN
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None
    if array.ndim != 1:
        raise ValueError("not a list of numbers")
    return array


def _listed(values: np.ndarray) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]


Numbers = Annotated[
    np.ndarray, PlainValidator(_array), PlainSerializer(_listed, return_type=list[float | None])
]
"""float64[n]; NaN where a run diverged."""

Counts = Annotated[
    np.ndarray,
    PlainValidator(lambda values: _array(values, np.int64)),
    PlainSerializer(lambda values: values.tolist(), return_type=list[int]),
]
"""int64[n]."""
