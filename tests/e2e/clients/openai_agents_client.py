"""OpenAI's agents, with their model for chat completions."""

from agents import Agent, ModelSettings, Runner, function_tool, set_tracing_disabled
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

from check import MODEL, QUESTION, expect, report

set_tracing_disabled(True)
called: list[str] = []


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=30)
    inhabitants: int = Field(ge=0, le=50_000_000)


@function_tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    called.append(city)
    return f"18 degrees in {city}"


def _agent(output: type[BaseModel] | None = None, tools: bool = False) -> Agent:
    return Agent(
        name="Assistant",
        model=OpenAIChatCompletionsModel(MODEL, openai_client=AsyncOpenAI()),
        tools=[get_weather] if tools else [],
        output_type=output,
        model_settings=ModelSettings(
            temperature=0, max_tokens=200, tool_choice="required" if tools else None, include_usage=True
        ),
    )


async def chat() -> None:
    result = await Runner.run(_agent(), QUESTION)
    expect(bool(result.final_output), result.final_output)


async def stream() -> None:
    result = Runner.run_streamed(_agent(), QUESTION)
    events = [event async for event in result.stream_events()]
    expect(len(events) > 1 and bool(result.final_output), events)


async def tools() -> None:
    result = await Runner.run(_agent(tools=True), QUESTION)
    expect(len(called) >= 1 and bool(result.final_output), called)
    called.clear()
    streamed = Runner.run_streamed(_agent(tools=True), QUESTION)
    async for _ in streamed.stream_events():
        pass
    expect(len(called) >= 1 and bool(streamed.final_output), called)


async def structured_output() -> None:
    result = await Runner.run(_agent(City), "Describe Rome.")
    expect(isinstance(result.final_output, City), result.final_output)


if __name__ == "__main__":
    report("openai-agents", chat=chat, stream=stream, tools=tools, structured_output=structured_output)
