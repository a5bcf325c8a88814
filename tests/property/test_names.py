"""Names that come out of files are shown as text, whatever is in them: in rows, errors, a progress bar."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phiconv.cli.report import progress_display, table
from phiconv.cli.voice import tame
from phiconv.errors import MalformedFileError, printable

# What terminals and rich's markup are driven by, often; else anything, also halves of surrogate pairs.
NAMES = st.lists(
    st.one_of(
        st.sampled_from(
            ["[", "]", "[/", "[/x]", "[link=x]", "[bold]", "\\", "\x1b[2J", "\x9b", "\r", "\u202e"]
        ),
        st.characters(exclude_categories=()),
    )
).map("".join)

# What rich writes itself: colours, and where the cursor goes.
OWN = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]|[\r\n]")


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


@given(NAMES)
@example("[/x]")
def test_names_are_printed_on_one_line(name):
    error = MalformedFileError(f"in {name}", path=f"/{name}", at=name, hint=name)
    for text in (printable(name), str(error), *table([(printable(name), "1")])):
        assert text.isprintable()
    assert printable("[/x][link=y]") == "[/x][link=y]"


@given(NAMES)
def test_generated_text_keeps_its_lines_and_drives_nothing(text):
    shown = tame(text)
    assert shown.replace("\n", "").replace("\t", "").isprintable()
    assert tame(shown) == shown
    assert tame("a\n\tb\u6f22\x1b[2J") == "a\n\tb\u6f22\\x1b[2J"


@given(NAMES)
@example("[/x]")
@example("[link=https://a.example]b[/link]")
@example("[bold]")
def test_a_progress_bar_shows_a_name_as_it_is(name):
    terminal = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", terminal)
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", "200")
        with progress_display(quiet=False) as progress:
            progress(1, 2, name)
    shown = OWN.sub("", terminal.getvalue())
    assert shown.isprintable()
    assert printable(name, 40).strip() in shown
