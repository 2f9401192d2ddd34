"""Many processes' pages of metrics become one: each family told once, every series of a worker with its label.

Pure, on the text format that prometheus_client writes. Series are never added up: a replaced worker starts its counters
again, and only with a label of its own does `rate()` see that as the restart it is. Sums are the reader's to make.
"""

from __future__ import annotations

from collections.abc import Mapping


def merged(own: str, pages: Mapping[int, str]) -> str:
    """`own` as it is, and the workers' pages (by number) with `worker="n"` on every series."""
    families: dict[str, list[str]] = {}
    _add(families, own, "")
    for number, page in sorted(pages.items()):
        _add(families, page, f'worker="{number}"')
    return "".join(f"{line}\n" for family in families.values() for line in family)


def _add(families: dict[str, list[str]], page: str, label: str) -> None:
    """The families of a page, those that are known already without their two lines of comment."""
    family: list[str] = []
    known = False
    for line in page.split("\n"):  # not splitlines(): it also splits inside of labels, at U+2028
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            known = name in families
            family = families.setdefault(name, [])
        if line.startswith("#"):
            if not known:
                family.append(line)
        elif line:
            family.append(_labelled(line, label))


def _labelled(series: str, label: str) -> str:
    if not label:
        return series
    name, brace, rest = series.partition("{")
    if brace and " " not in name:  # no label's value can contain the first brace, for it comes before all of them
        return f"{name}{{{label},{rest}"
    name, _, value = series.partition(" ")
    return f"{name}{{{label}}} {value}"
