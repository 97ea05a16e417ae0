"""The schemas of the inference calls: OpenAI's request fields, and vLLM's own, with their types and limits.

`ENGINE_FIELDS` is derived from them: a field that is in no schema never reaches an engine. The field names
are those of vLLM 0.32's request classes (``vllm.entrypoints.openai.*.protocol``, ``pooling.embed.protocol``,
``serve.tokenize.protocol``); ``tests/gateway/inference/test_engine_fields.py`` compares both. Integers have
the limits of the engine's transport, MessagePack's 64 bits, where vLLM has none that is narrower.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

MAX_CHOICES = 128
MAX_STOPS = 4
"""Stop sequences of one request: OpenAI's limit, and vLLM's."""
_INT64_MAX = 2**63 - 1

Int64 = Annotated[int, Meta(ge=-(2**63), le=_INT64_MAX)]
Count = Annotated[int, Meta(ge=0, le=_INT64_MAX)]
Positive = Annotated[int, Meta(ge=1, le=_INT64_MAX)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Text = Annotated[str, Meta(min_length=1)]


class StreamOptions(Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Part(Struct, tag_field="type"):
    """One part of a message's content."""


class TextPart(Part, tag="text"):
    text: str


class InputTextPart(Part, tag="input_text"):
    text: str


class OutputTextPart(Part, tag="output_text"):
    text: str


class RefusalPart(Part, tag="refusal"):
    refusal: str


class ThinkingPart(Part, tag="thinking"):
    thinking: str


class MediaPart(Part):
    """A part that is not text, for models that take such input."""


class MediaUrl(Struct):
    url: str


class ImagePart(MediaPart, tag="image_url"):
    image_url: MediaUrl


class InputImagePart(MediaPart, tag="input_image"):
    image_url: str | None = None


class InputAudio(Struct):
    data: str
    format: str


class InputAudioPart(MediaPart, tag="input_audio"):
    input_audio: InputAudio


class AudioUrlPart(MediaPart, tag="audio_url"):
    audio_url: MediaUrl


class VideoUrlPart(MediaPart, tag="video_url"):
    video_url: MediaUrl


class FilePart(MediaPart, tag="file"):
    file: dict[str, Any]


AnyPart = (
    TextPart
    | InputTextPart
    | OutputTextPart
    | RefusalPart
    | ThinkingPart
    | ImagePart
    | InputImagePart
    | InputAudioPart
    | AudioUrlPart
    | VideoUrlPart
    | FilePart
)
Content = str | list[AnyPart]


class CalledFunction(Struct):
    name: str
    arguments: str


class FunctionToolCall(Struct, tag_field="type", tag="function"):
    id: str
    function: CalledFunction


class CalledTool(Struct):
    name: str
    input: str


class CustomToolCall(Struct, tag_field="type", tag="custom"):
    id: str
    custom: CalledTool


class Message(Struct, tag_field="role"):
    """One message of a conversation, by its role."""


class DeveloperMessage(Message, tag="developer"):
    content: Content
    name: str | None = None


class SystemMessage(Message, tag="system"):
    content: Content
    name: str | None = None


class UserMessage(Message, tag="user"):
    content: Content
    name: str | None = None


class AssistantMessage(Message, tag="assistant"):
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[FunctionToolCall | CustomToolCall] | None = None
    function_call: CalledFunction | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ToolMessage(Message, tag="tool"):
    content: Content
    tool_call_id: str


class FunctionMessage(Message, tag="function"):
    name: str
    content: Content | None = None


AnyMessage = DeveloperMessage | SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage
ROLES = ("system", "assistant", "user", "function", "tool", "developer")
PART_TYPES = ("text", "image_url", "input_audio", "file", "refusal")


class JsonSchema(Struct):
    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    """OpenAI's, and vLLM's ``structural_tag``, whose other members are the engine's to judge."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """vLLM's ``StructuredOutputsParams``: exactly one of the first six."""

    json: str | dict[str, Any] | None = None
    regex: Annotated[str, Meta(max_length=10_000)] | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=5000)] | None = None
    grammar: Annotated[str, Meta(max_length=100_000)] | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: str | None = None


class RepetitionDetection(Struct):
    """vLLM's ``RepetitionDetectionParams``: the engine compares that many tokens with each new one."""

    max_pattern_size: Annotated[int, Meta(ge=0, le=1024)] | None = None
    min_pattern_size: Annotated[int, Meta(ge=0, le=1024)] | None = None
    min_count: Annotated[int, Meta(ge=0, le=1024)] | None = None


class Call(Struct, kw_only=True):
    """What all inference calls share."""

    model: str
    user: str | None = None
    service_tier: Literal["auto", "default", "fast", "flex", "priority", "scale"] | None = None


class Generation(Call, kw_only=True):
    """What chat and text completions share: first OpenAI's fields, then vLLM's."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Positive | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: Int64 | None = None
    stop: Text | Annotated[list[Text], Meta(max_length=MAX_STOPS)] | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None

    add_special_tokens: bool | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1)] | None = None
    bad_words: list[Text] | None = None
    echo: bool | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    length_penalty: Annotated[float, Meta(ge=-50, le=50)] | None = None
    logprob_token_ids: list[TokenId] | None = None
    min_p: Share | None = None
    min_tokens: Count | None = None
    mm_payload: Literal["tensors", "none"] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=-1, le=_INT64_MAX)] | None = None
    repetition_detection: RepetitionDetection | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    return_mm_kwargs: bool | None = None
    return_token_ids: bool | None = None
    return_token_offsets: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    routed_experts_prompt_start: Count | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    stop_token_ids: list[TokenId] | None = None
    stream_interval: Positive | None = None
    structured_outputs: StructuredOutputs | None = None
    thinking_token_budget: Annotated[int, Meta(ge=-1, le=_INT64_MAX)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_INT64_MAX)] | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=_INT64_MAX)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    use_beam_search: bool | None = None
    watermarking: bool | None = None

    @property
    def answer_limit(self) -> int | None:
        """The most tokens of one answer, where the request limits them."""
        return self.max_tokens


class ChatCall(Generation, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[AnyMessage], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=-1, le=_INT64_MAX)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    add_generation_prompt: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    documents: list[dict[str, str]] | None = None
    include_reasoning: bool | None = None
    media_io_kwargs: dict[str, dict[str, Any]] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    return_prompt_text: bool | None = None

    @property
    def answer_limit(self) -> int | None:
        """The newer field goes before the deprecated one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionCall(Generation, kw_only=True):
    """``POST /v1/completions``. No tokens at all is how a prompt alone is scored."""

    prompt: str | list[str | TokenId | list[TokenId]]
    max_tokens: Count | None = None
    logprobs: Annotated[int, Meta(ge=-1, le=_INT64_MAX)] | None = None
    suffix: str | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    prompt_embeds: str | list[str] | None = None


class EmbeddingCall(Call, kw_only=True):
    """``POST /v1/embeddings``."""

    input: str | list[str | TokenId | list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None

    add_special_tokens: bool | None = None
    embed_dtype: Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"] | None = None
    endianness: Literal["native", "big", "little"] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    padding: Literal["max_length", "do_not_pad"] | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=_INT64_MAX)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    use_activation: bool | None = None


class TokenizeCall(Call, kw_only=True):
    """``POST /tokenize``: a prompt or messages."""

    prompt: str | None = None
    messages: Annotated[list[AnyMessage], Meta(min_length=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    add_special_tokens: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    media_io_kwargs: dict[str, dict[str, Any]] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeCall(Call, kw_only=True):
    """``POST /detokenize``."""

    tokens: list[TokenId]


OWN_FIELDS = frozenset(
    {
        "cache_salt", "priority", "request_id", "session_id", "kv_transfer_params", "ec_transfer_params",
        "vllm_xargs", "stream_options",
    }
)  # fmt: skip
"""The gateway's own: a client's value never reaches an engine, and is not looked at."""
_NOT_THE_ENGINES = OWN_FIELDS | {"best_of", "service_tier"}


def _engine_fields(kind: type[Call]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind)) - _NOT_THE_ENGINES


ENGINE_FIELDS: Mapping[type[Call], frozenset[str]] = MappingProxyType(
    {
        kind: _engine_fields(kind)
        for kind in (ChatCall, CompletionCall, EmbeddingCall, TokenizeCall, DetokenizeCall)
    }
)
"""The fields of each call that are sent to an engine of this host; all others are dropped."""
