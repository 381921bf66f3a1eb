"""Numbers and markup of reports, and the files of numbers."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensq.report import drawing, html
from ensq.report.numbers import (
    chance,
    interval,
    moment,
    percent,
    plain,
    signed,
    with_error,
)

finite = st.floats(allow_nan=False, allow_infinity=False, width=64).filter(
    lambda value: value == 0 or 1e-200 < abs(value) < 1e200
)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (81.62353, 1.2700, "81.6 ± 1.3"),
        (81.62353, 0.0127, "81.624 ± 0.013"),
        (81.62353, 12.7, "82 ± 13"),
        (8162.353, 127.0, "8160 ± 130"),
        (0.0093084, 0.00021, "0.00931 ± 0.00021"),
        (-0.1847, 0.0995, "−0.18 ± 0.10"),
        (-0.1847, 0.0994, "−0.185 ± 0.099"),
        (2.5e-7, 3.1e-8, "(2.50 ± 0.31)×10⁻⁷"),
        (3.2e9, 4.0e7, "(3.200 ± 0.040)×10⁹"),
        (0.001, 20.0, "0 ± 20"),
        (81.62353, None, "81.62"),
        (81.62353, math.nan, "81.62"),
        (81.62353, 0.0, "81.62"),
        (None, 1.0, "–"),
        (math.nan, 1.0, "not a number"),
    ],
)
def test_the_error_says_how_many_digits_a_value_has(value, error, text):
    assert with_error(value, error) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (81.62353, "81.62"),
        (99999.6, "100000"),
        (0.00012345, "0.0001234"),
        (1.23e-6, "1.230×10⁻⁶"),
        (-2.0, "−2.000"),
        (0, "0"),
        (9.99996, "10.00"),
        (1234567.0, "1.235×10⁶"),
        (None, "–"),
        (math.inf, "infinite"),
        (-math.inf, "−infinite"),
    ],
)
def test_a_number_has_four_digits(value, text):
    assert plain(value) == text


@given(finite)
def test_what_is_read_is_what_was_meant_to_four_digits(value):
    text = plain(value).replace("−", "-")
    if "×10" in text:
        head, _, power = text.partition("×10")
        digits = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
        text = f"{head}e{digits}"
    assert float(text) == pytest.approx(value, rel=5.1e-4)


@given(finite, st.floats(-8, 8))
def test_a_value_with_an_error_is_within_a_tenth_of_the_error(value, ratio):
    error = 10**ratio * (abs(value) or 1.0)
    text = with_error(value, error).replace("−", "-")
    power = 0
    if text.startswith("("):
        text, _, shown = text[1:].partition(")×10")
        power = int(shown.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
    read, read_error = (float(part) for part in text.split(" ± "))
    scale = 10.0**-power
    assert read == pytest.approx(value * scale, abs=0.051 * error * scale, rel=1e-12)
    assert read_error == pytest.approx(error * scale, rel=0.051, abs=1e-9 * abs(value) * scale)


def test_a_chance_by_draws_is_never_none_at_all() -> None:
    assert [chance(x) for x in (0, 0.0009, 0.001, 0.02, 0.96, 1)] == [
        *("< 0.1 %", "< 0.1 %", "0.1 %", "2 %", "96 %", "100 %"),
    ]


def test_intervals_signs_shares_and_times_are_read_at_a_glance():
    assert interval(0.31234, 0.51234) == "0.31 to 0.51"
    assert interval(-0.1, 0.2) == "−0.10 to 0.20"
    assert interval(None, 1.0) == "–"
    assert signed(0.424, 0.05) == "+0.424 ± 0.050"
    assert signed(-0.424) == "−0.424"
    assert [percent(x) for x in (0, 0.0004, 0.005, 0.68, 0.997, 0.9999, 1, None)] == [
        *("0 %", "< 0.1 %", "0.5 %", "68 %", "99.7 %", "> 99.9 %", "100 %", "–"),
    ]
    assert moment(0) == "1970-01-01 00:00:00"
    assert moment(None) == "–"
    assert moment(1e30) == "?"


def test_text_is_escaped_and_control_characters_are_shown():
    made = html.tag("p", '<b>"&\u202e\x1b', title='"><script>')
    assert made == '<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt;&quot;&amp;\\u202e\\u001b</p>'
    assert html.tag("p", html.tag("b", "x")) == "<p><b>x</b></p>"
    assert html.tag("div", class_="a", aria_label="b", hidden=True, id=None) == (
        '<div class="a" aria-label="b" hidden></div>'
    )


@given(st.text())
def test_no_text_becomes_markup(text):
    made = str(html.tag("td", text))
    inside = made.removeprefix("<td>").removesuffix("</td>")
    assert not set("<>\"'") & set(inside)


def test_numbers_keep_all_their_digits_in_csv():
    value = float(np.nextafter(0.1, 1))
    rows = [
        (1, value, None, math.nan, True, "a,b"),
        (2, np.float64(3.5), "", math.inf, False, "-x"),
    ]
    made = drawing.as_csv(("a", "b", "c", "d", "e", "f"), rows)
    head, one, two = csv.reader(io.StringIO(made))
    assert head == list("abcdef")
    assert float(one[1]) == value
    assert one == ["1", repr(value), "", "", "True", "a,b"]
    assert two == ["2", "3.5", "", "", "False", "'-x"]  # no spreadsheet takes it for a formula
