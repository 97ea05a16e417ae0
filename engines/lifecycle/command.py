"""How an engine is started: its command line and its environment."""

import os
from pathlib import Path

from engines.lifecycle.engine_root import EngineRoot, host_root
from engines.spec import ModelSpec, Task
from engines.wire import on_cpu

# What an engine may see of the gateway's environment. Everything else stays out: keys, proxies, hub tokens.
_INHERITED = (
    "LD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "OMP_NUM_THREADS",
    "GOMP_SPINCOUNT",
    "ONEDNN_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_LOGGING_LEVEL",
)
_PROMPTS_A_STEP = 4
KEEP_ALIVE_S = 120
"""Idle connections are closed by the engine after so long; the client gives them up much earlier."""


def arguments(spec: ModelSpec, socket: Path) -> list[str]:
    """vLLM's arguments for the model, with the server on the Unix socket."""
    chosen = {
        "--model": str(spec.source),
        "--served-model-name": spec.id,
        "--uds": str(socket),
        "--scheduling-policy": "priority",
        "--max-num-seqs": str(spec.max_running),
        "--worker-extension-cls": "engines.vllm_process.worker.WorkerExtension",
    }
    if spec.lora is not None:
        chosen["--max-loras"] = str(spec.lora.slots)
        chosen["--max-cpu-loras"] = str(spec.lora.cpu_slots)
        chosen["--max-lora-rank"] = str(spec.lora.max_rank)
    if spec.max_model_len is not None:
        chosen["--max-model-len"] = str(spec.max_model_len)
    if spec.reasoning_parser is not None:
        chosen["--reasoning-parser"] = spec.reasoning_parser
    if spec.chat_template is not None:
        chosen["--chat-template"] = str(spec.chat_template)
    flags = ["--enable-prompt-tokens-details", "--disable-uvicorn-access-log", "--disable-fastapi-docs"]
    if spec.lora is not None:
        flags.append("--enable-lora")
    if spec.tool_parser is not None:
        chosen["--tool-call-parser"] = spec.tool_parser
        flags += ["--enable-auto-tool-choice", "--exclude-tools-when-tool-choice-none"]
    if spec.task is Task.EMBED:
        chosen["--runner"] = "pooling"
    else:
        flags.append("--enable-prefix-caching")
    if (dtype := data_type(spec)) is not None:
        chosen["--dtype"] = dtype
    if spec.step_tokens is not None:
        chosen["--max-num-batched-tokens"] = str(spec.step_tokens)
        # Of a step, one long prompt takes a quarter at most while other requests run or wait.
        chosen["--long-prefill-token-threshold"] = str(spec.step_tokens // _PROMPTS_A_STEP)
    if on_cpu():
        flags.append("--enforce-eager")
        chosen["--distributed-executor-backend"] = "engines.vllm_process.executor.InProcessExecutor"
        chosen["--kv-cache-memory-bytes"] = str(spec.kv_cache_bytes)
    else:
        flags.append("--enable-sleep-mode")
    if not on_cpu() and spec.memory_bytes:
        chosen["--kv-cache-memory-bytes"] = str(spec.memory_bytes)
    return [word for pair in chosen.items() for word in pair] + flags + list(spec.engine_args)


def data_type(spec: ModelSpec) -> str | None:
    """What the engine is told to compute in; None: as vLLM chooses, which it does on a GPU."""
    if spec.dtype != "auto":
        return spec.dtype
    if not on_cpu():
        return None
    return "float32" if spec.task is Task.EMBED else "bfloat16"


def command(spec: ModelSpec, socket: Path) -> list[str]:
    """The arguments of the Python that is the engine."""
    return ["-m", "engines.vllm_process.launcher", *arguments(spec, socket)]


def environment(folder: Path, cache: Path, root: EngineRoot | None = None) -> dict[str, str]:
    """The environment of an engine that owns ``folder`` and keeps its caches in ``cache``.

    ``root``: the paths that it sees; None: the host's.
    """
    root = root or host_root()
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    cores = str(len(os.sched_getaffinity(0)))
    # A fixed PATH: a snapshot stays good, whatever shell starts the gateway. Compilers of a GPU's kernels may
    # be anywhere.
    environment["PATH"] = os.defpath if on_cpu() else os.environ.get("PATH", os.defpath)
    environment.setdefault("LANG", "C.UTF-8")
    environment.setdefault("OMP_NUM_THREADS", cores)
    # A thread that waits for the others spins for so many rounds before it sleeps. libgomp's default lasts
    # milliseconds, in which engines that share the cores keep each other from finishing: one token from each
    # of ten took 8 s and takes 1.5 s, and one engine alone is as fast as before.
    environment.setdefault("GOMP_SPINCOUNT", "2000")
    # vLLM would keep a core for its scheduler and pin the rest: several engines would share the same pins.
    environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if on_cpu():
        # vLLM compiles a helper at the first request for logprobs: 15 s, 80 MB of memory, 150 MB of headers.
        environment["TORCHDYNAMO_DISABLE"] = "1"
    return environment | {
        **root.variables,
        "PYTHONPATH": str(root.source),
        "PYTHONUNBUFFERED": "1",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "XDG_CACHE_HOME": str(cache),
        "HF_HOME": str(cache / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "VLLM_CONFIG_ROOT": str(folder),
        "VLLM_RPC_BASE_PATH": str(folder),
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_LOGGING_COLOR": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE_S),
        "GLOO_SOCKET_IFNAME": "lo",
        "NO_COLOR": "1",
    }
