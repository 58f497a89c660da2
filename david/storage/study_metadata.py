"""The metadata of a study: the base, data, space and objective that it was made on, as stored in its attribute `david`.

`study.signature` writes it; `StudyMetadata` reads it.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from david.recipe.base_model import Base
from david.recipe.schema import Data

METADATA = "david"  # the study's attribute
PERPLEXITY, MULTIPLE_CHOICE, TASKS, CUSTOM = "perplexity", "multiple_choice", "tasks", "custom"  # kinds of objectives


def _known_keys(model: type[BaseModel]) -> BeforeValidator:
    """Drop what a later version stored in a part beside the keys of today."""

    def keep(value: Any) -> Any:
        return {k: v for k, v in value.items() if k in model.model_fields} if isinstance(value, Mapping) else value

    return BeforeValidator(keep)


_Base = Annotated[Base, _known_keys(Base)]
_Data = Annotated[Data, _known_keys(Data)]


class StudyMetadata(BaseModel):
    """What a study was made on.

    Older studies lack some keys, which then have a default; unknown keys are ignored.

    Attributes:
        base: The base model.
        dtype: Type of its weights, such as `float32`, and how they are quantised.
        space: The search space with its options.
        space_name: Name of the space alone.
        objective: The objective with its options.
        objective_kind: `perplexity`, `multiple_choice`, `tasks` or `custom`.
        also: Name and description of each quantity that is minimised beside the objective.
        window: Tokens of a window.
        bos: Whether each window begins with the beginning-of-sequence token.
        search_data: The data that the search scores on.
        search_documents: The document of each search window; None if unknown.
        held_out_data: The data that finalists are judged on, if any.
        sampler: Class of the sampler that the study began with.
        pruner: Class of the pruner, if any.
        seed: Seed of the search; None if the study was created by the caller.
        made_with: Versions of the libraries.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    base: _Base
    dtype: str
    space: str
    space_name: str
    objective: str
    objective_kind: str
    also: list[tuple[str, str | dict[str, Any]]] = []
    window: int
    bos: bool
    search_data: _Data
    search_documents: list[int | str] | None = None
    held_out_data: _Data | None = None
    sampler: str
    pruner: str | None = None
    seed: int | str | None = None
    made_with: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Derive the kind of the objective in studies that do not store it."""
        if not isinstance(values, Mapping) or "objective_kind" in values:
            return values
        name = _without_options(str(values.get("objective")))
        return {**values, "objective_kind": name if name in (PERPLEXITY, MULTIPLE_CHOICE, TASKS) else CUSTOM}

    @property
    def n_layers(self) -> int:
        """Layers of the base, which every study states; ValueError if they are missing."""
        if self.base.num_layers is None:
            raise ValueError("the study's metadata do not state the number of layers of its base")
        return self.base.num_layers

    @property
    def objective_name(self) -> str:
        """The objective without its options."""
        return _without_options(self.objective)

    @property
    def extra_objectives(self) -> list[str]:
        """Names of the quantities that are minimised beside the objective."""
        return [name for name, _ in self.also]


def _without_options(name: str) -> str:
    return name.partition("(")[0]
