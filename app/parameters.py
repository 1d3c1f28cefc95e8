"""The parameters of ``/classify`` and ``/tag``, from the query and from a JSON body, validated."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams

from app.errors import bad_parameter

LONGEST_SHOWN = 60
"""Characters of a name that somebody made up."""

Score = Annotated[float, Field(ge=0.0, le=1.0)]


def _split(value: object) -> object:
    """``a,b`` in a query means two labels; a JSON list is one already."""
    if isinstance(value, str):
        return [part for part in value.split(",") if part]
    return value


Labels = Annotated[list[str], BeforeValidator(_split)]


def _none_if_empty(value: object) -> object:
    """As a web form sends a field that nobody filled in."""
    return None if value == "" else value


Name = Annotated[str | None, BeforeValidator(_none_if_empty)]


class Parameters(BaseModel):
    """What both routes take."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    model: Name = Field(
        None, description="The model; by default the only one that fits the route, or the operator's choice."
    )
    version: Name = Field(None, description="The model's version; the highest by default.")
    embedding: bool = Field(False, description="Also give the pooled embedding of each picture.")
    explain: bool = Field(False, description="Also give each answered label's heat map: where the network saw it.")
    format: Literal["hf"] | None = Field(None, description="`hf`: answer as Hugging Face image classification does.")


class ClassifyParameters(Parameters):
    """What ``/classify`` takes."""

    top_k: int = Field(5, ge=1, le=100_000, description="How many labels, best first.")
    min_score: Score = Field(0.0, description="Leave out labels below this score.")


class TagParameters(Parameters):
    """What ``/tag`` takes."""

    threshold: Score | None = Field(None, description="One threshold for all; by default each label's own, else 0.5.")
    max_tags: int | None = Field(None, ge=1, description="At most so many tags, best first.")
    include_labels: Labels | None = Field(None, description="Only these labels.")
    exclude_labels: Labels | None = Field(None, description="None of these labels.")


P = TypeVar("P", bound=Parameters)


def read_parameters(kind: type[P], query: QueryParams, body: dict[str, Any]) -> P:
    """Parameters from the query, those of the body before them.

    Raises:
        RequestError: 422 ``bad_parameter``, naming the parameter.
    """
    unknown = next((name for name in (*query, *body) if name not in kind.model_fields), None)
    if unknown is not None:
        shown = unknown[:LONGEST_SHOWN]
        nearest = difflib.get_close_matches(shown, kind.model_fields, 1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(kind.model_fields)}"
        raise bad_parameter(f"unknown parameter {shown!r}; {hint}")
    given: dict[str, Any] = {}
    for key in query:
        values = query.getlist(key)
        given[key] = values if key in ("include_labels", "exclude_labels") and len(values) > 1 else values[-1]
    try:
        return kind.model_validate({**given, **body})
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(str(part) for part in fault["loc"])
        raise bad_parameter(f"{name}: {fault['msg']}") from error
