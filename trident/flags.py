"""Command-line flags generated from a pydantic settings model.

    @app.command(cls=settings_command(lambda: TrainSettings))
    def train(context: typer.Context) -> None:
        given = context.obj  # {"epochs": "3", "pretrained": True}: only the flags that were given

A flag takes its name, type, help text and default from the model's field. Values stay text, except
booleans, and tuples, which are split at commas. Only the model validates them; `describe_errors` names the flags in its
errors. A field's
`json_schema_extra` may hold

    group    the help panel of this field and of those after it
    default  text to show in place of the default
    off      the flag that turns a boolean off, in place of `no-<name>`

The model is loaded only when the command is parsed, so `trident --help` does not import pydantic.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer
from rich.markup import escape
from typer.core import TyperCommand

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo

Recipes = Mapping[str, Mapping[str, Any]]


def settings_command(
    load_model: Callable[[], "type[BaseModel]"],
    load_recipes: Callable[[], Recipes] = dict,
    *,
    hidden: bool = False,
) -> type[TyperCommand]:
    """Return a command class with one flag per field of a settings model; the given values are in `context.obj`.

    Args:
        load_model: imports and returns the model.
        load_recipes: defaults that replace the model's in some cases, by the case's name; shown in the help.
        hidden: accept the flags, but leave them out of the help.
    """

    @cache
    def options() -> list[Any]:
        return _build_options(list(_parameters(load_model(), load_recipes(), hidden=hidden)))

    class SettingsCommand(TyperCommand):
        def get_params(self, ctx: Any) -> list[Any]:
            """Return the command's own parameters and the generated flags."""
            return [*super().get_params(ctx), *options()]

        def invoke(self, ctx: Any) -> Any:
            """Move the values of the generated flags to `ctx.obj`."""
            given = {option.name: ctx.params.pop(option.name) for option in options()}
            fields = load_model().model_fields
            ctx.obj = {name: _value(fields[name], given[name]) for name in given if given[name] is not None}
            return super().invoke(ctx)

    return SettingsCommand


def flag_name(field: str) -> str:
    """`batch_size` -> `--batch-size`."""
    return f"--{field.replace('_', '-')}"


def describe_errors(error: "ValidationError") -> str:
    """One line for all errors of a settings model, each with the flag's name."""
    messages = []
    for fault in error.errors():
        prefix = f"{flag_name(str(fault['loc'][0]))}: " if fault["loc"] else ""
        messages.append(prefix + fault["msg"].removeprefix("Value error, "))
    return "; ".join(messages)


def _build_options(parameters: list[inspect.Parameter]) -> list[Any]:
    """Let typer turn the parameters of a function into options."""

    def command() -> None:
        """Exist only for its signature."""

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return list(typer.main.get_command(app).params)


def _parameters(model: "type[BaseModel]", recipes: Recipes, *, hidden: bool) -> Iterator[inspect.Parameter]:
    panel: str | None = None
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        panel = str(extra["group"]) if "group" in extra else panel
        is_bool = field.annotation is bool
        off = flag_name(_off_flag(name, extra))
        option = typer.Option(
            f"{flag_name(name)}/{off}" if is_bool else flag_name(name),
            metavar=None if is_bool else f"<{_type_text(field.annotation)}>",
            help=_help_text(name, field, extra, recipes),
            rich_help_panel=panel,
            hidden=hidden,
            show_default=False,
        )
        annotation: Any = Annotated[bool | None, option] if is_bool else Annotated[str | None, option]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _value(field: "FieldInfo", given: str | bool) -> str | bool | tuple[str, ...]:
    """Split the text for a tuple at its commas."""
    if isinstance(given, str) and get_origin(field.annotation) is tuple:
        return tuple(part.strip() for part in given.split(",") if part.strip())
    return given


def _type_text(annotation: Any) -> str:
    """`int`, `path`, `choice`; `choices` for a tuple of choices."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "choice"
    if origin in (Union, UnionType):
        return "|".join(_type_text(argument) for argument in arguments if argument is not NoneType)
    if origin is tuple:
        return f"{_type_text(arguments[0])}s"
    return str(getattr(annotation, "__name__", annotation)).lower()


def _choices(annotation: Any) -> tuple[Any, ...]:
    """Return the values of a Literal, or of a tuple or union with one."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return arguments
    return next((found for found in map(_choices, arguments) if found), ())


def _help_text(name: str, field: "FieldInfo", extra: Mapping[str, Any], recipes: Recipes) -> str:
    """Return the description with the choices and the default."""
    notes = []
    if choices := _choices(field.annotation):
        notes.append(f"[choices: {', '.join(map(str, choices))}]")
    if default := extra.get("default") or _default_text(name, field, extra, recipes):
        notes.append(f"[default: {default}]")
    return " ".join([escape(field.description or ""), *(f"[dim]{escape(note)}[/]" for note in notes)]).strip()


def _default_text(name: str, field: "FieldInfo", extra: Mapping[str, Any], recipes: Recipes) -> str | None:
    """`20; cifar10: 10`; None for a field without a default."""
    if field.default is None or field.default == ():
        return None

    def text(value: Any) -> str:
        return (name if value else _off_flag(name, extra)).replace("_", "-") if isinstance(value, bool) else str(value)

    cases = [f"{case}: {text(recipe[name])}" for case, recipe in recipes.items() if name in recipe]
    return "; ".join([text(field.default), *cases])


def _off_flag(name: str, extra: Mapping[str, Any]) -> str:
    return str(extra.get("off", f"no-{name}"))
