"""Tables of a configuration file: read strictly, the nearest name in every message, keys refused."""

from __future__ import annotations

import re
import tomllib
import types
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reasonembed_mteb.endpoints.endpoint import Endpoint
from reasonembed_mteb.endpoints.keys import is_key_name
from reasonembed_mteb.errors import ReasonEmbedError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
# Of a model, and of a dataclass.
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
# How keys of the known services look: a beginning, and letters and digits in a row that are more than a word
# of a name has (jina-reranker-v2-base-multilingual).
_KEY = re.compile(
    r"\b(?:(?:sk|pk)[-_]|(?:xai|nvapi|pplx)-|(?:hf|gsk|jina|r8)_)(?:[A-Za-z0-9]+[-_])*[A-Za-z0-9]{16,}"
    r"|\bAIza[\w-]{30,}"
)


class Section(BaseModel):
    """A table of a file: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _FromTable:
    """Take a table of the file for a dataclass; strict pydantic takes nothing but a finished one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        schema = handler.resolve_ref_schema(handler(source))
        # For the table alone: its values stay strict.
        return cast("CoreSchema", {**schema, "strict": False})


EndpointTable = Annotated[Endpoint, _FromTable()]
_Read = TypeVar("_Read", bound=Section)


def read_toml(file: Path, example: str) -> dict[str, Any]:
    """Read a configuration file as it stands.

    Args:
        file: TOML.
        example: A file that shows every key, for the message.

    Raises:
        ReasonEmbedError: If it is missing or is not TOML.
    """
    try:
        # A byte order mark, as editors on Windows write it, does no harm.
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        msg = f"cannot read {file}: {error.strerror}; give a TOML file such as {example}"
        raise ReasonEmbedError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{file} is not TOML: {error}; correct that line"
        raise ReasonEmbedError(msg) from error


def check_section(
    kind: type[_Read], content: Mapping[str, Any], file: Path, place: str = "", hidden: tuple[str, ...] = ()
) -> _Read:
    """Make a section of a table.

    Args:
        kind: What the table must be.
        content: The table.
        file: For the message.
        place: Where in the file the table stands; empty for the whole file.
        hidden: Fields that are no keys of the file.

    Raises:
        ReasonEmbedError: If a key or value is not allowed; the key is named, and the nearest known one.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ReasonEmbedError(f"{file}: {_first_line(kind, error, place, hidden)}") from None


def section_keys(section: type, hidden: tuple[str, ...] = ()) -> list[str]:
    """Return the keys that a table may hold.

    Args:
        section: A section, or a dataclass that a table is read as.
        hidden: Fields that are no keys of the file.
    """
    if issubclass(section, BaseModel):
        return [name for name in section.model_fields if name not in hidden]
    return [one.name for one in fields(section)] if is_dataclass(section) else []


def refuse_keys(content: object, file: Path, place: str = "") -> None:
    """Refuse a file that holds a key: keys come from the environment alone.

    The key itself is not repeated.

    Args:
        content: What the file holds.
        file: For the message.
        place: Where that stands in the file.

    Raises:
        ReasonEmbedError: If a name or a value says that it is one.
    """
    if isinstance(content, dict):
        for name, value in content.items():
            where = f"{place}.{name}".lstrip(".")
            if isinstance(value, str) and is_key_name(str(name)):
                raise _literal_key(file, where)
            refuse_keys(value, file, where)
    elif isinstance(content, list):
        for number, value in enumerate(content):
            refuse_keys(value, file, f"{place}.{number}")
    elif isinstance(content, str) and _KEY.search(content):
        raise _literal_key(file, place)


def _literal_key(file: Path, place: str) -> ReasonEmbedError:
    msg = (
        f"{file}: {place} holds a key: set it in an environment variable and name that, "
        'api_key_env = "MY_KEY"'
    )
    return ReasonEmbedError(msg)


def _first_line(kind: type, error: ValidationError, place: str, hidden: tuple[str, ...]) -> str:
    """Say the first thing that is wrong, and how many more there are."""
    # A misspelt key first: what is missing is often the same one.
    found = sorted(error.errors(), key=lambda one: one["type"] not in _UNKNOWN_KEY)
    first = found[0]
    location = first["loc"]
    where = ".".join(filter(None, [place, *map(str, location)]))
    if first["type"] in _UNKNOWN_KEY:
        known = section_keys(_section_at(kind, location[:-1]), hidden)
        table = ".".join(filter(None, [place, *map(str, location[:-1])]))
        table = f"[{table}]" if table else "the file"
        text = f"{unknown_name('key', str(location[-1]), known)} Allowed in {table}: {', '.join(known)}"
    elif first["type"] == "missing":
        text = f"{where} is missing; write it"
    else:
        reason = first["msg"].removeprefix("Value error, ")
        given = "" if isinstance(first["input"], dict) else f" (given: {first['input']!r})"
        text = f"{where}: {reason}{given}".removeprefix(": ")
    return text + (f" ... and {len(found) - 1} more" if len(found) > 1 else "")


def _section_at(kind: type, location: tuple[int | str, ...]) -> type:
    """Return the class of the table at a place of the file."""
    section: Any = kind
    for part in location:
        is_table = isinstance(section, type) and issubclass(section, BaseModel)
        # A list or a mapping of tables otherwise.
        section = section.model_fields[str(part)].annotation if is_table else get_args(section)[-1]
        if get_origin(section) is Annotated:
            section = get_args(section)[0]
        if get_origin(section) in (Union, types.UnionType):
            section = next(one for one in get_args(section) if one is not type(None))
    return section if isinstance(section, type) else kind
