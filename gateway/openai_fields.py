"""OpenAI's own request fields: all that is sent to an engine which somebody else runs.

Source: the parameter types of the official ``openai`` Python client, 3.54.
"""

OPENAI_FIELDS = frozenset(
    {
        # chat completions
        "messages", "model", "audio", "frequency_penalty", "function_call", "functions", "logit_bias",
        "logprobs", "max_completion_tokens", "max_tokens", "metadata", "modalities", "moderation", "n",
        "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        "parallel_tool_calls", "prediction", "presence_penalty", "reasoning_effort", "response_format",
        "safety_identifier", "seed", "service_tier", "stop", "store", "stream", "temperature",
        "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
        # completions
        "prompt", "best_of", "echo", "suffix",
        # embeddings
        "input", "dimensions", "encoding_format",
    }
)  # fmt: skip
