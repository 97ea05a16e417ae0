"""No path of the host is in a text that a client gets; all else stays as it is."""

import pytest

from gateway.http.host_paths import without_paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot open /root/.cache/hub/model.json", "cannot open <path>"),
        ("'/srv/torpor/.torpor/adapters/ab/cd.safetensors' is cut short", "'<path>' is cut short"),
        ('File "/usr/lib/python3.11/json/decoder.py", line 3', 'File "<path>", line 3'),
        ("(/opt/x/y.py:12)", "(<path>:12)"),
        ("file:///etc/ssl/key.pem", "<path>"),
        ("see //srv//share/x", "see <path>"),
        ("/données/modèle/poids.bin", "<path>"),
        ("[/a/b,/c/d]", "[<path>,<path>]"),
        ("path=/home/u/.ssh/", "path=<path>"),
        ("/proc/self/environ", "<path>"),
        ("/a/b%20c/d~1", "<path>"),
    ],
)
def test_paths_are_hidden(text: str, expected: str) -> None:
    assert without_paths(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "input/output of 1/2 and and/or",
        "https://example.com/v1/models is not a model",
        "messages[0].content/text",
        "use / or \\",
        "a ratio of 3 / 4",
        "./relative/name and ../up/there",
        "",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert without_paths(text) == text


def test_a_long_text_takes_linear_time() -> None:
    assert without_paths("/a" * 100_000) == "<path>"
    assert without_paths("/" * 200_000 + " " + "a/" * 100_000)
