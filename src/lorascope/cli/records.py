"""Options that belong together as one record: Typer takes a command's parameters one by one, and knows no groups.

    @dataclass(frozen=True)
    class OnTask:
        task: Annotated[str | None, typer.Option(help="…")] = None
        data: Annotated[str | None, typer.Option(help="…")] = None

    @with_records
    def inspect(adapter: Path, on_task: OnTask) -> None: …       # lorascope inspect ADAPTER --task … --data …

Floor: cli.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints


def with_records(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take dataclasses: each of their fields becomes an option of its own, in the record's place.

    Typer looks at signature and annotations, so these are what is given to it. A field without a default is an option that has
    to be given, and stands first.
    """
    hints = get_type_hints(command, include_extras=True)
    records: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in records:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        record = records[parameter.name]
        own = get_type_hints(record, include_extras=True)
        parameters += [
            inspect.Parameter(one.name, parameter.kind, default=_default(one), annotation=own[one.name])
            for one in sorted(fields(record), key=lambda one: one.default is not MISSING)
        ]

    @wraps(command)
    def spread(**values: Any) -> None:
        gathered = {name: kind(**{one.name: values.pop(one.name) for one in fields(kind)}) for name, kind in records.items()}
        command(**values, **gathered)

    # By keyword, as Typer calls it: then what has a default may stand before what has none.
    by_keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    spread.__signature__ = inspect.Signature(by_keyword)  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default


def given(record: Any, *but: str) -> list[str]:
    """The options of a record that were given, as they are written, without those of some fields."""
    named = [one.name for one in fields(record) if one.name not in but and getattr(record, one.name) != one.default]
    return [f"--{name.replace('_', '-')}" for name in named]
