"""Tables of text whose lines are checked as they are read, for those that come from elsewhere."""

import csv
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, TypeVar

Word = TypeVar("Word", bound=str)


class Line:
    """A line of a table, by the names of its columns.

    Its methods take the name of a column, and raise ValueError for what does not fit: with file, line, column, what is
    there and what is expected.
    """

    def __init__(self, table: Path, number: int, fields: dict[str, str]) -> None:
        self._table, self._number, self._fields = table, number, fields

    def text(self, column: str) -> str:
        """What is written there, which must be something."""
        return self._fields[column] or self._refuse(column, "some text")

    def any_text(self, column: str) -> str:
        """What is written there; it may be nothing."""
        return self._fields[column]

    def one_of(self, column: str, allowed: Sequence[Word]) -> Word:
        """One of several words."""
        for word in allowed:
            if self._fields[column] == word:
                return word
        return self._refuse(column, f"one of: {', '.join(allowed)}")

    def integer(self, column: str, allowed: range | None = None) -> int:
        """An integer of a range, of those from 0 on where none is given."""
        value = self._fields[column]
        number = int(value) if value.isascii() and value.isdigit() else None
        if number is not None and (allowed is None or number in allowed):
            return number
        named = "from 0 on" if allowed is None else f"from {allowed[0]} to {allowed[-1]}"
        return self._refuse(column, f"an integer {named}")

    def year(self, column: str) -> int:
        """The year, in UTC, of a time in ISO 8601 that says its zone."""
        value = self._fields[column]
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            time = None
        if time is None or time.tzinfo is None:
            return self._refuse(column, "a time with its zone, such as 2016-01-31T10:00:00Z")
        return time.astimezone(UTC).year

    def _refuse(self, column: str, expected: str) -> NoReturn:
        raise ValueError(
            f"{self._table}, line {self._number}: {column} is {self._fields[column]!r}, expected {expected}"
        )


def lines_of(table: Path, columns: Sequence[str], remedy: str) -> Iterator[Line]:
    """The lines of a table below its head, one after another; empty ones are passed over.

    Args:
        table: values separated by commas, in UTF-8, with the names of the columns in the first line.
        columns: those that there must be.
        remedy: what to do about a table that is missing or was cut short.

    Raises:
        ValueError: if the table is missing, lacks columns, or a line has more or fewer fields than there are columns.
    """
    if not table.is_file():
        raise ValueError(f"{table} is missing: {remedy}")
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        try:
            head = next(reader, [])
            lacking = [column for column in columns if column not in head]
            if lacking:
                raise ValueError(
                    f"{table} has no column {', '.join(lacking)}, but: {', '.join(head) or 'none'}. Is it the table "
                    f"that it should be? If not, {remedy}"
                )
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(head):
                    first = (
                        f"; {head[len(fields)]} is the first that lacks one"
                        if len(fields) < len(head)
                        else ""
                    )
                    raise ValueError(
                        f"{table}, line {reader.line_num}: {len(fields)} fields, expected {len(head)}, one for each "
                        f"column{first}. If the file was cut short or edited, {remedy}"
                    )
                yield Line(table, reader.line_num, dict(zip(head, fields, strict=True)))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{table}, after line {reader.line_num}: no text separated by commas ({error}); {remedy}"
            ) from error
