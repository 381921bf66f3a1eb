"""Numbers as people read them: as many digits as the uncertainty leaves, never a bare NaN."""

from __future__ import annotations

import math
import time

NOTHING = "–"  # stands where there is no number
MINUS = "\u2212"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_EXACT = 1e-9  # errors below this part of a value are not worth its digits
_LARGE, _SMALL = 1e6, 1e-5  # outside of these powers of ten are written out


def plain(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits; a dash for None, words for what is no number."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return _strange(value)
    if value == 0:
        return "0"
    # the power of ten after rounding: 9.9996 has five digits before it is rounded to four
    power = int(f"{abs(value):.{digits - 1}e}".partition("e")[2])
    if not _SMALL <= abs(value) < _LARGE:
        return f"{_signed(value / 10.0**power, digits - 1)}×{_ten(power)}"
    return _signed(value, max(0, digits - 1 - power))


def with_error(value: float | None, error: float | None, digits: int = 4) -> str:
    """``81.6 ± 1.3``: the error with two significant digits, the value with as many decimals.

    Without an error, or with one that no digit shows, the value has ``digits`` of them.
    """
    if value is None or not math.isfinite(value):
        return plain(value, digits)
    if error is None or not math.isfinite(error) or abs(error) <= _EXACT * abs(value):
        return plain(value, digits)
    error = abs(error)
    largest = max(abs(value), error)
    if not _SMALL <= largest < _LARGE:
        power = int(f"{largest:.6e}".partition("e")[2])
        inner = _pair(value / 10.0**power, error / 10.0**power)
        return f"({inner})×{_ten(power)}"
    return _pair(value, error)


def _pair(value: float, error: float) -> str:
    power = int(f"{error:.1e}".partition("e")[2])
    decimals = max(0, 1 - power)
    if power > 1:  # neither has digits that the error does not leave
        value, error = round(value, 1 - power), round(error, 1 - power)
    return f"{_signed(value, decimals)} ± {error:.{decimals}f}"


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """``0.31 to 0.52``, with the decimals that their difference needs."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return NOTHING
    width = high - low
    if width <= 0 or max(abs(low), abs(high)) >= _LARGE or width < _SMALL:
        return f"{plain(low)} to {plain(high)}"
    power = int(f"{width:.{digits - 1}e}".partition("e")[2])
    decimals = max(0, digits - 1 - power)
    return f"{_signed(low, decimals)} to {_signed(high, decimals)}"


def between(value: float | None, low: float | None, high: float | None) -> str:
    """``9.02 (8.87 to 9.16)``: a value with its interval, digits as the interval's width needs."""
    if value is None or not math.isfinite(value):
        return plain(value)
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return plain(value)
    largest, width = max(abs(value), abs(low), abs(high)), high - low
    if width <= _EXACT * largest or largest == 0:
        return plain(value)
    power = 0
    if not _SMALL <= largest < _LARGE:
        power = int(f"{largest:.6e}".partition("e")[2])
    decimals = max(0, 1 - int(f"{width / 10.0**power:.1e}".partition("e")[2]))
    shown = [_signed(one / 10.0**power, decimals) for one in (value, low, high)]
    text = f"{shown[0]} ({shown[1]} to {shown[2]})"
    return f"{text} ×{_ten(power)}" if power else text


def signed(value: float | None, error: float | None = None, digits: int = 3) -> str:
    """A difference, with its sign also where it is positive."""
    text = with_error(value, error, digits)
    positive = value is not None and math.isfinite(value) and value > 0
    return f"+{text}" if positive and not text.startswith("(") else text


def percent(share: float | None) -> str:
    """``68 %``; below one, and close to a hundred, with a digit more."""
    if share is None or not math.isfinite(share):
        return NOTHING
    value = 100.0 * share
    if 0 < value < 0.1:
        return "< 0.1 %"
    if 99.9 < value < 100:
        return "> 99.9 %"
    return f"{value:.1f} %" if 0 < value < 1 or 99 < value < 100 else f"{value:.0f} %"


def chance(share: float) -> str:
    """A probability by draws, of which none at all does not mean never."""
    return "< 0.1 %" if share < 0.001 else percent(share)


def moment(seconds: float | None) -> str:
    """A time (seconds since 1970) in UTC."""
    if seconds is None:
        return NOTHING
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):  # no time of this world
        return "?"


def _signed(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        return text.removeprefix("-")
    return text.replace("-", MINUS)


def _ten(power: int) -> str:
    return f"10{str(power).translate(_SUPERSCRIPT)}"


def _strange(value: float) -> str:
    if math.isnan(value):
        return "not a number"
    return "infinite" if value > 0 else f"{MINUS}infinite"
