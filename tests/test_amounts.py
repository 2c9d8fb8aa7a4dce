"""Counts, bytes and seconds as people read them."""

from lorascope.amounts import bytes_text, counted, seconds_text


def test_amounts_have_the_unit_that_suits_them():
    assert [counted(number, "trial") for number in (0, 1, 2000)] == ["0 trials", "1 trial", "2,000 trials"]
    assert [bytes_text(value) for value in (None, 3 * 2**9, 2**20, 3 * 2**29)] == ["–", "1.5 KiB", "1 MiB", "1.50 GiB"]
    assert [seconds_text(value) for value in (None, 3.14, 600, 7200)] == ["–", "3.1 s", "10.0 min", "2.0 h"]
