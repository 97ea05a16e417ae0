"""LangChain's ``ChatOpenAI`` and ``OpenAIEmbeddings``."""

from typing import Annotated

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

from check import EMBED_MODEL, MODEL, QUESTION, expect, report


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=30)
    inhabitants: int = Field(ge=0, le=50_000_000)


@tool
def get_weather(city: Annotated[str, Field(max_length=20)]) -> str:
    """Get the weather of a city."""
    return f"18 degrees in {city}"


model = ChatOpenAI(model=MODEL, temperature=0, max_tokens=60)


def chat() -> None:
    answer = model.invoke(QUESTION)
    expect(bool(answer.content), answer)
    expect((answer.usage_metadata or {}).get("output_tokens", 0) > 0, answer.usage_metadata)


def stream() -> None:
    chunks = list(model.stream(QUESTION))
    expect(len(chunks) > 1 and bool("".join(str(chunk.content) for chunk in chunks)), chunks)


def tools() -> None:
    for choice in ("required", "get_weather"):
        forced = model.bind_tools([get_weather], tool_choice=choice)
        answer = forced.invoke(QUESTION)
        expect(isinstance(answer.tool_calls[0]["args"]["city"], str), answer)
        streamed, *rest = forced.stream(QUESTION)
        for chunk in rest:
            streamed += chunk
        expect(isinstance(streamed.tool_calls[0]["args"]["city"], str), streamed)
    result = get_weather.invoke(answer.tool_calls[0])
    expect(isinstance(result, ToolMessage), result)
    final = model.bind_tools([get_weather]).invoke([HumanMessage(QUESTION), answer, result])
    expect(bool(final.content or final.tool_calls), final)


def structured_output() -> None:
    for method in ("json_schema", "function_calling"):
        bound = model.with_structured_output(City, method=method)
        expect(isinstance(bound.invoke("Describe Rome."), City), method)
        *_, last = bound.stream("Describe Rome.")
        expect(isinstance(last, City), last)


def embeddings() -> None:
    vectors = OpenAIEmbeddings(model=EMBED_MODEL, check_embedding_ctx_length=False).embed_documents(
        ["a", "b c"]
    )
    expect([len(vector) for vector in vectors] == [384, 384], vectors)


if __name__ == "__main__":
    report(
        "langchain-openai",
        chat=chat,
        stream=stream,
        tools=tools,
        structured_output=structured_output,
        embeddings=embeddings,
    )
