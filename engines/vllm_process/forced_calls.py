"""Tool calls that a request demands: with arguments by their schema, from the first token on.

Changes what vLLM 0.32 does for ``tool_choice`` "required" or a function's name, in the API server's process:

- The schema of the arguments is enforced also if the tool is not ``strict``. vLLM would let such a tool be
  called with any JSON value at all.
- No reasoning comes first. With a reasoning parser vLLM enforces no grammar before the reasoning has ended,
  which a model that does not think never does: the answer would be text. (``enable_in_reasoning`` would hold
  for ``response_format`` as well, whose JSON would then be taken for reasoning.)

Requests without such a choice are not touched. Parsers that vLLM does not compose of two (those of gpt-oss
and Kimi K3, say) have rules of their own and are left alone.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionNamedToolChoiceParam,
    ChatCompletionRequest,
)
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.parser.abstract_parser import DelegatingParser
from vllm.tool_parsers.tool_strict_level import ToolStrictLevel


def is_forced(request: Any) -> bool:
    """Whether the answer has to be a tool call."""
    return isinstance(request, ChatCompletionRequest) and (
        request.tool_choice == "required"
        or isinstance(request.tool_choice, ChatCompletionNamedToolChoiceParam)
    )


def install() -> None:
    """Put the changes into vLLM's classes. Once in a process."""
    DelegatingParser._apply_structural_tag = _strict(DelegatingParser._apply_structural_tag)
    OpenAIServingChat._make_parser = _without_reasoning(OpenAIServingChat._make_parser)
    OpenAIServingChat._engine_reasoning_kwargs = _constrained(OpenAIServingChat._engine_reasoning_kwargs)


Method = Callable[..., Any]


def _strict(apply: Method) -> Method:
    def apply_structural_tag(parser: DelegatingParser, request: Any) -> Any:
        if is_forced(request):
            parser.tool_strict_level = ToolStrictLevel.PARAMETER
        return apply(parser, request)

    return apply_structural_tag


def _without_reasoning(make: Method) -> Method:
    def make_parser(
        serving: OpenAIServingChat,
        request: ChatCompletionRequest,
        tokenizer: Any,
        chat_template_kwargs: dict[str, Any] | None,
    ) -> Any:
        composed = serving.parser_cls
        if not is_forced(request) or composed.parse is not DelegatingParser.parse:
            return make(serving, request, tokenizer, chat_template_kwargs)
        return _tools_only(composed)(
            tokenizer,
            request.tools,
            chat_template_kwargs=chat_template_kwargs,
            model_config=serving.model_config,
        )

    return make_parser


def _constrained(reasoning_kwargs: Method) -> Method:
    def engine_reasoning_kwargs(
        serving: OpenAIServingChat, request: ChatCompletionRequest, parser: Any, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        arguments: dict[str, Any] = reasoning_kwargs(serving, request, parser, *args, **kwargs)
        if is_forced(request) and isinstance(parser, DelegatingParser) and parser.reasoning_parser is None:
            arguments["reasoning_ended"] = True
        return arguments

    return engine_reasoning_kwargs


@cache
def _tools_only(composed: type[DelegatingParser]) -> type[DelegatingParser]:
    return type(composed.__name__, (composed,), {"reasoning_parser_cls": None})
