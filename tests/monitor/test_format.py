"""Text on a terminal: what a terminal would act on is escaped."""

from sfactory.monitor.format import printable


def test_printable_escapes_what_a_terminal_acts_on():
    assert printable("\x1b[2J\x07\x7f\x9b\r\u202e\ud800") == r"\x1b[2J\x07\x7f\x9b\r\u202e\ud800"


def test_printable_keeps_lines_tabs_and_letters():
    assert printable("a\tb\nZürich 東京 é") == "a\tb\nZürich 東京 é"
