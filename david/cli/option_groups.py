"""Groups of options: a command takes a dataclass, and each field of the dataclass is an option of the command.

Typer has no groups (its issues 153 and 154), but it reads a command's options from `__signature__`. `expand_groups`
replaces each dataclass there by the dataclass's fields, and builds the dataclass again when the command is called.
`Omit` names the fields that one command does not offer.
"""

import functools
import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

T = TypeVar("T")


@dataclass(frozen=True)
class Omit:
    """Fields of a group that a command does not offer: they keep the values of the parameter's default."""

    names: tuple[str, ...]


def expand_groups(command: Callable[..., T]) -> Callable[..., T]:
    """Return a command for typer in which every dataclass parameter is replaced by an option for each field.

    A field is annotated as a typer parameter is. The values of the parameter's default, an instance, are the options'
    defaults, so that each command has its own. Options without a help panel get the `panel` of their dataclass.

    Args:
        command: A function whose dataclass parameters have defaults and distinct field names.

    Returns:
        A function that takes the options as keywords and calls `command` with the dataclasses.

    Example:
        >>> from typing import ClassVar
        >>> @dataclass(frozen=True)
        ... class Size:
        ...     panel: ClassVar[str] = "Size"
        ...     width: int = 1
        ...     height: int = 1
        >>> def area(size: Annotated[Size, Omit(("height",))] = Size(height=3)) -> int:
        ...     return size.width * size.height
        >>> list(inspect.signature(expand_groups(area)).parameters), expand_groups(area)(width=2)
        (['width'], 6)
    """
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Any, list[str]]] = {}
    for parameter in signature.parameters.values():
        group, omitted = _read_annotation(parameter.annotation)
        if not is_dataclass(group):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        hints = get_type_hints(group, include_extras=True)
        names = [field.name for field in fields(group) if field.name not in omitted]
        groups[parameter.name] = (parameter.default, names)
        parameters += [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(parameter.default, name),
                annotation=_in_panel(hints[name], getattr(group, "panel", None)),
            )
            for name in names
        ]

    @functools.wraps(command)
    def call(**values: Any) -> T:
        filled = {
            group: replace(default, **{name: values.pop(name) for name in names})
            for group, (default, names) in groups.items()
        }
        return command(**values, **filled)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _read_annotation(annotation: Any) -> tuple[Any, tuple[str, ...]]:
    """Return the type of an annotation and the names that its `Omit`, if there is one, leaves out."""
    if get_origin(annotation) is not Annotated:
        return annotation, ()
    kind, *notes = get_args(annotation)
    return kind, tuple(name for note in notes if isinstance(note, Omit) for name in note.names)


def _in_panel(annotation: Any, panel: str | None) -> Any:
    """Return an annotation whose option is shown in a help panel, unless it names one already."""
    if get_origin(annotation) is not Annotated:
        return annotation
    kind, info = get_args(annotation)
    if isinstance(info, OptionInfo) and info.rich_help_panel is None:
        info = copy(info)
        info.rich_help_panel = panel
    return Annotated[kind, info]
