"""What every spec shares: frozen, no unknown keys, fields documented where they stand."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
"""A name that is also a directory's name: letters, digits, dot, underscore and dash."""


class Spec(BaseModel):
    """Base of all specs: a frozen value that refuses keys it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
