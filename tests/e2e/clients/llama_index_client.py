"""LlamaIndex's ``OpenAILike``."""

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

from check import API_KEY, BASE_URL, MODEL, QUESTION, expect, report


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=30)
    inhabitants: int = Field(ge=0, le=50_000_000)


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"18 degrees in {city}"


def _model(**options: bool) -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=BASE_URL,
        api_key=API_KEY,
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=8192,
        temperature=0,
        max_tokens=60,
        **options,
    )


MESSAGES = [ChatMessage(role="user", content=QUESTION)]


def chat() -> None:
    expect(bool(_model().chat(MESSAGES).message.content), "no text")


def stream() -> None:
    chunks = list(_model().stream_chat(MESSAGES))
    expect(len(chunks) > 1 and bool(chunks[-1].message.content), chunks)


def tools() -> None:
    model, tool = _model(), FunctionTool.from_defaults(get_weather)
    answer = model.chat_with_tools([tool], user_msg=QUESTION, tool_required=True)
    (call, *_) = model.get_tool_calls_from_response(answer)
    expect(isinstance(call.tool_kwargs["city"], str), call)
    *_, streamed = model.stream_chat_with_tools([tool], user_msg=QUESTION, tool_required=True)
    (again, *_) = model.get_tool_calls_from_response(streamed)
    expect(isinstance(again.tool_kwargs["city"], str), again)
    result = ChatMessage(
        role="tool", content=str(tool(**call.tool_kwargs)), additional_kwargs={"tool_call_id": call.tool_id}
    )
    history = [*MESSAGES, answer.message, result]
    expect(bool(model.chat_with_tools([tool], chat_history=history).message.content), "no text")


def structured_output() -> None:
    for options in ({}, {"should_use_structured_outputs": True}):
        city = _model(**options).structured_predict(City, PromptTemplate("Describe {city}."), city="Rome")
        expect(isinstance(city, City), city)


if __name__ == "__main__":
    report(
        "llama-index-llms-openai-like",
        chat=chat,
        stream=stream,
        tools=tools,
        structured_output=structured_output,
    )
