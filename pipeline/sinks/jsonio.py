"""JSON of any length, written and read piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pipeline.errors import FormatError

_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_CHUNK_CHARS = 1 << 20
MAX_ELEMENT_CHARS = 1 << 29
"""An array element longer than this is refused: nothing legitimate is, and it would have to fit in memory."""


def dumps(value: Any) -> str:
    """Compact JSON; ``ValueError`` on NaN and infinity, which JSON does not have."""
    return _ENCODER.encode(value)


def write_array(path: Path, elements: Iterable[Any]) -> None:
    """Write a JSON array, one element a line, as the elements come."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        _write_elements(file, elements)
        file.write("\n")


def write_object(path: Path, members: Mapping[str, Any]) -> None:
    """Write a JSON object, its members in order; an iterator becomes an array, drawn when its turn comes."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        write_members(file, members)
        file.write("\n")


def write_members(file: IO[str], members: Mapping[str, Any]) -> None:
    """:func:`write_object` into an open file, without the last newline."""
    for number, (name, value) in enumerate(members.items()):
        file.write(f"{',' if number else '{'}\n{dumps(name)}: ")
        if isinstance(value, Iterator):
            _write_elements(file, value)
        else:
            file.write(dumps(value))
    file.write("\n}" if members else "{}")


def _write_elements(file: IO[str], elements: Iterable[Any]) -> None:
    separator = "[\n"
    for element in elements:
        file.write(separator + _ENCODER.encode(element))
        separator = ",\n"
    file.write("]" if separator == ",\n" else "[]")


def read_elements(path: Path) -> Iterator[tuple[str, Any]]:
    """The members of a top-level object, arrays element by element as ``(member, element)``; of a top-level array
    ``("", element)``. Only one element is in memory.

    Raises:
        FormatError: unreadable, not JSON, NaN or infinity, or nothing but a plain value.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from _Cursor(file, str(path)).document()
    except (ValueError, RecursionError) as error:
        raise FormatError("not valid JSON", str(path), _short(error)) from error
    except OSError as error:
        raise FormatError("cannot read the file", str(path), str(error.strerror or error)) from error


def read_document(path: Path) -> Any:
    """A small JSON file, whole.

    Raises:
        FormatError: unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError("not valid JSON", str(path), _short(error)) from error
    except OSError as error:
        raise FormatError("cannot read the file", str(path), str(error.strerror or error)) from error


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class _Cursor:
    """Where we are in a JSON text that is read in chunks."""

    def __init__(self, file: IO[str], where: str) -> None:
        self._file, self._where = file, where
        self._text, self._at = "", 0
        self._raw_decode = json.JSONDecoder(parse_constant=_no_constant).raw_decode

    def document(self) -> Iterator[tuple[str, Any]]:
        kind = self._peek()
        if kind == "{":
            yield from self._members()
        elif kind == "[":
            yield from (("", element) for element in self._elements())
        else:
            raise FormatError("the file holds neither a JSON object nor an array", self._where)
        if self._peek():
            raise ValueError("there is more after the end of the document")

    def _members(self) -> Iterator[tuple[str, Any]]:
        self._take("{")
        if self._peek() == "}":
            self._take("}")
            return
        while True:
            name = self._value()
            if not isinstance(name, str):
                raise ValueError("a member has no name")
            self._take(":")
            if self._peek() == "[":
                yield from ((name, element) for element in self._elements())
            else:
                yield name, self._value()
            if self._take(",}") == "}":
                return

    def _elements(self) -> Iterator[Any]:
        self._take("[")
        if self._peek() == "]":
            self._take("]")
            return
        while True:
            yield self._value()
            if self._take(",]") == "]":
                return

    def _value(self) -> Any:
        """The value at the cursor. What looks broken may only be cut off: read on before giving up."""
        self._peek()
        while True:
            try:
                value, end = self._raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            if end == len(self._text) and self._more():
                continue
            self._at = end
            return value

    def _take(self, allowed: str) -> str:
        found = self._peek()
        if not found or found not in allowed:
            raise ValueError(f"expected one of {allowed!r}, but found {found or 'the end of the file'!r}")
        self._at += 1
        return found

    def _peek(self) -> str:
        """The next character that is not white space, or "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Drop what was consumed and read on; doubling keeps the number of retries on a long element small."""
        self._text, self._at = self._text[self._at :], 0
        if len(self._text) > MAX_ELEMENT_CHARS:
            raise FormatError("one element of the file is larger than can be read", self._where)
        chunk = self._file.read(max(_CHUNK_CHARS, len(self._text)))
        self._text += chunk
        return bool(chunk)
