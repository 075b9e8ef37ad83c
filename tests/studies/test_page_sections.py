"""Only the section between its own markers is rewritten."""

import pytest

from hypergrad_studies.page_sections import has_section, rewritten

PAGE = "before\n<!-- a -->\nold\n<!-- /a -->\n<!-- b -->\nold\n<!-- /b -->\nafter\n"


def test_only_the_named_section_changes() -> None:
    once = rewritten(PAGE, "b", "new \\1 text\n")
    assert once == PAGE.replace("-- b -->\nold\n", "-- b -->\nnew \\1 text\n")
    assert rewritten(once, "b", "old\n") == PAGE
    assert rewritten(rewritten(PAGE, "a", ""), "a", "old\n") == PAGE


def test_a_section_needs_both_of_its_markers() -> None:
    assert has_section(PAGE, "a")
    assert not has_section(PAGE, "c")
    assert not has_section("<!-- a -->\n<!-- /b -->", "a")
    assert not has_section("<!-- abc -->\n<!-- /abc -->", "a.c")
    with pytest.raises(ValueError, match=r"no <!-- c --> \.\.\. <!-- /c -->; add these two lines"):
        rewritten(PAGE, "c", "new")
