"""The limit of whitespace in structural tags. Runs where vLLM may be imported: `separate`."""

import pytest

from engines.vllm_process.json_whitespace import LIMIT, limited


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        (
            {"type": "json_schema", "json_schema": {}},
            {"type": "json_schema", "json_schema": {}, "max_whitespace_cnt": LIMIT},
        ),
        (
            {"type": "json_schema", "json_schema": {}, "max_whitespace_cnt": None},
            {"type": "json_schema", "json_schema": {}, "max_whitespace_cnt": LIMIT},
        ),
        (
            {"type": "json_schema", "json_schema": {}, "max_whitespace_cnt": 2},
            {"type": "json_schema", "json_schema": {}, "max_whitespace_cnt": 2},
        ),
        ({"type": "any_text"}, {"type": "any_text"}),
        ([1, "text", None], [1, "text", None]),
    ],
)
def test_each_schema_gets_the_limit(tag: object, expected: object) -> None:
    assert limited(tag) == expected
    nested = {"type": "structural_tag", "format": {"type": "sequence", "elements": [{"content": tag}]}}
    assert limited(nested)["format"]["elements"] == [{"content": expected}]


def test_a_schema_is_not_looked_into() -> None:
    schema = {"properties": {"x": {"type": "json_schema"}}}
    assert limited({"type": "json_schema", "json_schema": schema})["json_schema"] == schema
