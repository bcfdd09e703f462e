"""Amazon reviews 2014, 5-core, as S3-Rec published them: a line a user, `user item item ...` in time order.

McAuley et al., Image-based recommendations on styles and substitutes, SIGIR 2015; He and McAuley, Ups
and downs, WWW 2016. There are no times, so no global-time split. Ids are whole numbers (Office's items
start at 0); they stay text here and are numbered from 1, in numeric order, when the data is prepared.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ballast.data.readers import CONTENT, RawTables, without_times
from ballast.errors import BallastError
from ballast.strict import Strict


@dataclass(frozen=True, kw_only=True)
class Config(Strict):
    """`file` in the raw folder."""

    name: str
    file: str


def read(folder: Path, config: Config) -> RawTables:
    """All sequences of the file; raises BallastError that names the line of the first bad one."""
    path = folder / config.file
    if not path.is_file():
        raise BallastError(f"{path}: not found; run the fetch stage, and check `file` of the reader")
    users: list[str] = []
    items: list[str] = []
    first_line: dict[str, int] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            user, *sequence = line.split() or [""]
            bad = next((word for word in (user, *sequence) if not (word.isascii() and word.isdigit())), None)
            if bad is not None or not sequence:
                found = f"'{bad}' is not a whole number" if bad else "found no `user item item ...`"
                raise BallastError(
                    f"{path}: line {number}: {found}; expected a user and items, all whole numbers"
                )
            if user in first_line:
                raise BallastError(
                    f"{path}: line {number}: user {user} was already given in line {first_line[user]}"
                )
            first_line[user] = number
            users.extend([user] * len(sequence))
            items.extend(sequence)
    catalogue = pd.DataFrame({"item": pd.unique(pd.Series(items, dtype=str))})
    for column in CONTENT:
        catalogue[column] = None
    return RawTables(without_times(pd.Series(users, dtype=str), pd.Series(items, dtype=str)), catalogue)
