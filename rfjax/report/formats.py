"""Formats numbers for a reader: powers of ten, units of size and time, intervals, p-values."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence

from rfjax.console import printable

NONE = "–"
NBSP = "\u00a0"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def text(value: object) -> str:
    """Returns the value as text, escaped for HTML."""
    return html.escape(str(value), quote=True)


def sentence(value: str) -> str:
    """Makes a text a sentence with capital and full stop, safe for HTML. Exponents are raised as in `formula`."""
    return f"{formula(value[:1].upper() + value[1:])}."


def formula(value: str) -> str:
    """Makes a text with a law safe for HTML, and raises exponents: `a·flops^-b` becomes a·flops<sup>−b</sup>."""
    return re.sub(r"\b(flops|params|images|C)\^(-?\w+(\.\d+)?)", _raise_exponent, text(value))


def _raise_exponent(found):
    exponent = found[2].replace("alpha", "α").replace("beta", "β")
    return f"{found[1]}<sup>{minus(exponent)}</sup>"


def power(value: float | int | None, digits: int = 3) -> str:
    """Formats a number as 1.23 × 10¹⁵. A number between 0.001 and 10,000 is written without a power."""
    if value is None:
        return NONE
    if 1e3 <= abs(float(f"{value:.{digits - 1}e}")) < 1e4:  # rounded, since 999.6 is 1,000
        return minus(f"{value:,.0f}")
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return minus(f"{value:.{digits}g}")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{minus(mantissa)}{NBSP}×{NBSP}10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def count(value: float | int | None) -> str:
    """Formats a count: up to 99,999 like 1,234, and larger counts like 123 k, 1.23 M, 4.56 B or 7.89 T."""
    if value is None:
        return NONE
    if abs(value) < 1e5:
        return f"{value:,.0f}"
    rounded = float(f"{value:.2e}")  # first, since 999,700 is 1 M
    size, unit = next(row for row in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")) if abs(rounded) >= row[0])
    return f"{rounded / size:.3g} {unit}" if abs(rounded) < 1e15 else f"{rounded / size:,.0f} {unit}"


def duration(seconds: float | int | None) -> str:
    """Formats a time as 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return NONE
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def loss(value: float | int | None, stderr: float | None = None) -> str:
    """Formats a loss with its standard error, as 0.0731 ± 0.0004."""
    if value is None:
        return NONE
    return f"{value:.4f}" + (f" ± {stderr:.4f}" if stderr is not None else "")


def interval(
    value: float | int | None, low: float | None, high: float | None, form: str | Callable[[float], str] = ".2f"
) -> str:
    """Formats a value with its interval, as 0.31 [0.28, 0.34]; `form` is a format or a function such as `count`."""
    if value is None:
        return NONE
    show = form if callable(form) else lambda number: minus(format(number, form))
    return show(value) if low is None or high is None else f"{show(value)} [{show(low)}, {show(high)}]"


def estimate(found: Mapping | None, form: str | Callable[[float], str] = ".2f") -> str:
    """Formats an estimate, a mapping with `value`, `low` and `high`, as a value with its interval; a dash for None."""
    return interval(found["value"], found["low"], found["high"], form) if found else NONE


def score(run: Mapping) -> str:
    """Formats the overall score of a run or a depth (a row of `runs` or `depths` in report.json) with its interval."""
    return interval(run["score"], run["score_low"], run["score_high"])


# Forms of losses and exponents. Coefficients span decades, so they are written as powers of ten.
_PARAMETER_FORMS = {"E": ".4f", "b": ".3f", "alpha": ".3f", "beta": ".3f", "c0": ".3f", "c1": ".3f", "f": ".3f"}


def parameter(name: str, found: Mapping) -> str:
    """Formats the parameter `name` of a law with its interval."""
    return estimate(found, _PARAMETER_FORMS.get(name, power))


def p_value(p: float | None) -> str:
    """Formats a p-value with two digits. A small p-value is written as a power of ten, since it is never 0."""
    if p is None:
        return NONE
    if p < 1e-300:  # below what a float holds
        return f"below {power(1e-300, 1)}"
    return f"{p:.2g}" if p >= 1e-4 else power(p, 2)


def percent(value: float | int | None, *, signed: bool = True) -> str:
    """Formats a fraction as a percentage with two decimals; more than 1,000 % as "over 1,000 %"."""
    if value is not None and value > 10:
        return "over 1,000 %"
    return NONE if value is None else minus(f"{100 * value:{'+' if signed else ''}.2f} %")


def minus(shown: str) -> str:
    """Gives a formatted number a true minus sign, and a zero no minus sign."""
    if not shown.strip("-+0., %"):
        shown = shown.lstrip("-")
    return shown.replace("-", "−")


def amount(value: float, decimals: int = 0) -> str:
    """Formats a number with `decimals` decimals, as 1,275 or 0.2. A number below one unit of the last decimal gets two
    significant digits instead, as 0.034."""
    return f"{value:,.{decimals}f}" if value >= 10.0**-decimals or value == 0 else f"{value:.2g}"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Formats the rows of a table as lines with aligned columns."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
