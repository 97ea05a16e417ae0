"""Texts of engines, as a client may read them: without the paths of this host."""

import re

_PATH = re.compile(
    r"""(?<![\w:/.])               # not within a word, a URL or a relative path
        (?:file:)?/+               # absolute, also as a URL
        (?:[\w.@+~%=-]+/+)+        # at least one folder
        [\w.@+~%=-]*               # and what is in it""",
    re.VERBOSE,
)


def without_paths(text: str) -> str:
    """The text with ``<path>`` for each absolute path of at least one folder, such as ``/srv/a.json``."""
    return _PATH.sub("<path>", text)
