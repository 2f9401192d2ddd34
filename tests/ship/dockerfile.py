"""The Dockerfile as data: just enough of its grammar for our own file."""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from tests.ship.conftest import ROOT


class Instruction(NamedTuple):
    name: str
    rest: str


def stages() -> list[list[Instruction]]:
    """What stands before the first FROM, then one list for each stage, FROM first."""
    found: list[list[Instruction]] = [[]]
    for instruction in _instructions((ROOT / "Dockerfile").read_text()):
        if instruction.name == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def _instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines()]


def image_environment() -> dict[str, str]:
    """The variables a container of the image starts with."""
    pairs = [pair for name, rest in stages()[-1] if name == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)
