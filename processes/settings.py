"""Settings objects from environment variables and flags: a flag wins over a variable, a variable over the
default.

All errors of one start are reported together, so that a person mends them in one go. Only `load` reads what
it is given; nothing here looks at the process's own environment.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, TypeVar, cast

T = TypeVar("T")


class SettingsError(Exception):
    """A person has to change what was asked for: the message says what, one line a mistake."""


@dataclass(frozen=True, slots=True)
class Spec:
    """How one setting is read from text. `switch`: a flag without a value; `many`: several values, by commas
    or spaces.
    """

    help: str
    parse: Callable[[str], Any]
    flag: str | None = None
    switch: bool = False
    many: bool = False


def setting(
    text: str,
    parse: Callable[[str], Any] = str,
    *,
    flag: str | None = None,
    switch: bool = False,
    many: bool = False,
) -> dict[str, Any]:
    """Metadata of a dataclass field that `load` can fill.

    `flag` and the variable are named after the field where it is None.
    """
    return {"spec": Spec(text, parse, flag, switch, many)}


def nested(*, without: Sequence[str] = ()) -> dict[str, Any]:
    """Metadata of a field that is a dataclass: its settings are read along with those around it, but for
    `without`.
    """
    return {"without": frozenset(without)}


def whole(low: int, high: int) -> Callable[[str], int]:
    """Reads a whole number between `low` and `high`, both included."""

    def parse(text: str) -> int:
        number = int(text) if text.isascii() and text.lstrip("-").isdigit() else None
        if number is None or not low <= number <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return number

    return parse


def real(low: float, high: float) -> Callable[[str], float]:
    """Reads a finite number between `low` and `high`, both included."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return number

    return parse


def switch(text: str) -> bool:
    """Reads a yes or no of an environment variable."""
    if text.lower() not in {"0", "1", "false", "true", "no", "yes"}:
        raise ValueError("must be 0 or 1")
    return text.lower() in {"1", "true", "yes"}


def url(text: str) -> str:
    """Reads the address of an HTTP server, without a slash at its end."""
    if not text.startswith(("http://", "https://")) or len(text.split("://", 1)[1].strip("/")) == 0:
        raise ValueError("must be an address that begins with http:// or https://")
    return text.rstrip("/")


def load(
    cls: type[T], prefix: str, argv: Sequence[str], environ: Mapping[str, str], *, command: str, about: str
) -> T:
    """Read `cls` and the dataclasses within it from `PREFIX_NAME` variables and `--name` flags.

    What `cls.problems()` says, where there is such a method, counts too. Raises SettingsError with every
    mistake found. Asks argparse to print the help and exit on `--help`.
    """
    parser = argparse.ArgumentParser(prog=command, description=about, exit_on_error=False, allow_abbrev=False)
    _add_flags(parser, cls, prefix)
    try:
        given, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise SettingsError(str(error)) from error
    errors = [f"unknown argument {argument}" for argument in unknown]
    made = _Source(prefix, vars(given), environ, errors).make(cls)
    if made is not None:
        errors.extend(getattr(made, "problems", list)())
    if errors:
        raise SettingsError("\n".join(errors))
    return cast("T", made)


def _names(entry: Field[Any], prefix: str) -> tuple[Spec, str, str]:
    spec: Spec = entry.metadata["spec"]
    flag = spec.flag or entry.name.replace("_", "-")
    return spec, f"--{flag}", f"{prefix}_{flag.replace('-', '_').upper()}"


def _add_flags(
    parser: argparse.ArgumentParser, cls: type[Any], prefix: str, without: frozenset[str] = frozenset()
) -> None:
    for entry in fields(cls):
        if is_dataclass(entry.type):
            _add_flags(parser, cast("type[Any]", entry.type), prefix, entry.metadata["without"])
            continue
        if entry.name in without:
            continue
        spec, flag, variable = _names(entry, prefix)
        described = f"{spec.help} ({variable})".replace("%", "%%")
        if spec.switch:
            parser.add_argument(flag, dest=entry.name, action="store_const", const="1", help=described)
        else:
            parser.add_argument(
                flag, dest=entry.name, metavar="X", nargs="+" if spec.many else None, help=described
            )


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the values come from, and the mistakes found in them."""

    prefix: str
    given: Mapping[str, Any]
    environ: Mapping[str, str]
    errors: list[str]

    def make(self, cls: type[Any], without: frozenset[str] = frozenset()) -> object | None:
        """An object of `cls`, None when there is a mistake in it."""
        values: dict[str, Any] = {}
        before = len(self.errors)
        for entry in fields(cls):
            if is_dataclass(entry.type):
                values[entry.name] = self.make(cast("type[Any]", entry.type), entry.metadata["without"])
            elif entry.name not in without:
                try:
                    self._read(entry, values)
                except ValueError as error:
                    self.errors.append(str(error))
        if len(self.errors) > before:
            return None
        made: object = cls(**values)
        return made

    def _read(self, entry: Field[Any], values: dict[str, Any]) -> None:
        spec, flag, variable = _names(entry, self.prefix)
        text, source = self.given[entry.name], flag
        if text is None:
            text, source = self.environ.get(variable) or None, variable
        if text is None:
            if entry.default is MISSING:
                raise ValueError(f"{flag} (or {variable}) is needed: {spec.help}")
            return
        try:
            if spec.many:
                parts = (text if isinstance(text, str) else " ".join(text)).replace(",", " ").split()
                values[entry.name] = tuple(spec.parse(part) for part in parts)
            else:
                values[entry.name] = spec.parse(text)
        except ValueError as error:
            raise ValueError(f"{source} {error}") from error
