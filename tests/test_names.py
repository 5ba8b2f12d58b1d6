"""common/names.py: what a certificate can carry, and what a certificate's name covers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("example.com", "example.com"),
        ("  WWW.Example.COM. ", "www.example.com"),
        ("*.example.com", "*.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.例え.example", "*.xn--r8jz45g.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
        ("1.2.3.example", "1.2.3.example"),
    ],
)
def test_a_name_becomes_lower_case_a_labels(text: str, name: str):
    assert names.dns_name(text) == name


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty label"),
        ("example..com", "empty label"),
        (".example.com", "empty label"),
        ("*.", "whole leftmost label"),
        ("localhost", "single label"),
        ("*.com", "single label"),
        ("*", "whole leftmost label"),
        ("w*.example.com", "whole leftmost label"),
        ("www.*.example.com", "whole leftmost label"),
        ("*.*.example.com", "whole leftmost label"),
        ("192.0.2.1", "IP address"),
        ("[2001:db8::1]", "IP address"),
        ("2001:db8::1", "IP address"),
        ("a" * 64 + ".example.com", "63 is the limit"),
        (".".join(["a" * 60] * 4) + ".example.com", "253 is the limit"),
        ("under_score.example.com", "letters, digits and inner hyphens"),
        ("-dash.example.com", "letters, digits and inner hyphens"),
        ("dash-.example.com", "letters, digits and inner hyphens"),
        ("two words.example.com", "letters, digits and inner hyphens"),
        ("https://example.com", "letters, digits and inner hyphens"),
        ("xn--a.example.com", "not a valid internationalised name"),
        ("a\u2488.example.com", "not a valid internationalised name"),
    ],
)
def test_nonsense_is_refused_with_the_name_and_the_reason(text: str, reason: str):
    with pytest.raises(ValueError, match=reason) as refusal:
        names.dns_name(text)
    assert text[:20] in str(refusal.value)


@given(st.text(max_size=80))
def test_any_text_is_a_name_or_refused_with_a_sentence(text: str):
    try:
        name = names.dns_name(text)
    except ValueError as error:
        assert str(error)
    else:
        assert name.isascii()
        assert names.dns_name(name) == name


@pytest.mark.parametrize(
    ("pattern", "name", "covered"),
    [
        ("example.com", "example.com", True),
        ("*.example.com", "www.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", ".example.com", False),
        ("*.example.com", "wwwexample.com", False),
        ("example.com", "www.example.com", False),
    ],
)
def test_a_wildcard_covers_exactly_one_label(pattern: str, name: str, covered: bool):
    assert names.covers(pattern, name) is covered
