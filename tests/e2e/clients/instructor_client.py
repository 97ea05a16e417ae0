"""instructor over the official client."""

from typing import Any

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field

from check import MODEL, QUESTION, expect, report


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=30)
    inhabitants: int = Field(ge=0, le=50_000_000)


REQUEST: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Describe Rome."}],
    "temperature": 0,
    "max_tokens": 60,
}


def _client(mode: instructor.Mode) -> Any:
    return instructor.from_openai(OpenAI(), mode=mode)


def chat() -> None:
    request = {**REQUEST, "messages": [{"role": "user", "content": QUESTION}]}
    answer = _client(instructor.Mode.TOOLS).chat.completions.create(response_model=None, **request)
    expect(bool(answer.choices[0].message.content), answer)


def stream() -> None:
    parts = list(
        _client(instructor.Mode.TOOLS).chat.completions.create_partial(response_model=City, **REQUEST)
    )
    expect(len(parts) > 1 and parts[-1].name is not None, parts)


def tools() -> None:
    for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT):
        city = _client(mode).chat.completions.create(response_model=City, max_retries=0, **REQUEST)
        expect(isinstance(city, City), city)


def structured_output() -> None:
    city = _client(instructor.Mode.JSON_SCHEMA).chat.completions.create(
        response_model=City, max_retries=0, **REQUEST
    )
    expect(isinstance(city, City), city)


if __name__ == "__main__":
    report("instructor", chat=chat, stream=stream, tools=tools, structured_output=structured_output)
