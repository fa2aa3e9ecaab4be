"""What YAML's own error messages mean to somebody who writes firewall rules.

A table of (what the parser says, the character it stopped at) -> our words.  Both the C parser and the Python
one are understood.
"""

from __future__ import annotations

import re

import yaml

from penstock.core.text import printable

# words in the parser's message, the text it stopped at, what is wrong, what to write; first match wins
_MEANINGS: tuple[tuple[str, str, str, str], ...] = (
    (r"nesting depth", r"", "nested far too deep", "the rules need four levels"),
    (
        r"scanning an alias|scanning an anchor",
        r"",
        "an unquoted `*` or `&` starts an alias or an anchor in YAML",
        'put the text in quotes: "*.example.org"',
    ),
    (
        r"cannot start any token|tab character",
        r"\t",
        "a tab, and YAML allows only spaces here",
        "indent with spaces",
    ),
    (
        r"cannot start any token",
        r"[@`%]",
        "a text cannot start with `@`, `%` or a backtick in YAML",
        "put the text in quotes",
    ),
    (
        r"mapping values are not allowed|found unexpected ':'",
        r"",
        "a `:` that YAML takes for the end of a key",
        'put the text in quotes, as in "fe80::", or check the indentation',
    ),
    (r"node content", r":", "an unquoted text that starts with `:`", 'put it in quotes: "::1"'),
    (
        r"(sequence|block) entries are not allowed|sequence entries",
        r"",
        "a list cannot start behind `key: -`",
        "start the list on the next line, or write `key: [a, b]`",
    ),
    (r"flow sequence", r"", "a `[` without its `]`, or a missing comma", "write `[a, b]`"),
    (r"flow mapping", r"", "a `{` without its `}`, or a missing comma", "write `{key: value}`"),
    (r"unexpected end of stream", r"", "a quote that is never closed", "close the quote"),
    (
        r"escape character|hexdecimal|hexadecimal",
        r"",
        "an unknown escape in a double-quoted text",
        "use single quotes",
    ),
    (r"document start", r"", "text behind the end of the document", "write one document a file"),
    (
        r"block mapping|block collection|block end|expected ':'",
        r"",
        "this line fits neither the list nor the mapping around it",
        "check the indentation and the `:` behind the key",
    ),
)


def explain(error: yaml.MarkedYAMLError, text: str) -> tuple[int, int, str, str, str]:
    """Return (line, column, code, what is wrong, what to do) for a syntax error in `text`."""
    says = f"{error.context or ''} {error.problem or ''}"
    mark = error.problem_mark or error.context_mark
    if re.search(r"scanning an (alias|anchor)|quoted scalar|flow (sequence|mapping)", says) and error.context_mark:
        mark = error.context_mark  # where the thing starts that is wrong, not where the parser gave up
    if mark is None:
        return 1, 1, "yaml-syntax", printable(says.strip(), 120), "check the text"
    rest = _text_at(text, mark.line, mark.column)
    for words, at, what, hint in _MEANINGS:
        if re.search(words, says) and re.match(at, rest):
            return mark.line + 1, mark.column + 1, "yaml-syntax", what, hint
    return (
        mark.line + 1,
        mark.column + 1,
        "yaml-syntax",
        f"not YAML: {printable(says.strip(), 120)}",
        "check the text",
    )


def _text_at(text: str, line: int, column: int) -> str:
    lines = re.split("\r\n|[\r\n\x85\u2028\u2029]", text)
    return lines[line][column : column + 80] if line < len(lines) else ""
