"""Grammars are compiled within a limit of processor time, and one at a time for each project.

vLLM 0.32 compiles a request's grammar (a JSON schema, regular expression or choice) in a thread of the engine
core, first come, first served and without a limit. Some small grammars take minutes: fifty strings, each with
a ``maxLength`` of its own. Here a child process tries a new grammar first: a fork with a limit of processor
time (RLIMIT_CPU, setrlimit(2)). A grammar that it cannot compile fails its request alone, as vLLM handles
such errors. A grammar that it can compile takes as long again in the engine core, in threads of low priority.
Compiled grammars are not passed on by the child: xgrammar 0.2.8 writes 76 MB for a schema of 300 properties.
"""

import hashlib
import os
import resource
import select
import signal
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_guidance import GuidanceBackend
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

CPU_LIMIT_S = 4
"""Seconds of processor time for one grammar."""
_WALL_LIMIT_S = 30.0
_NICENESS = 10
_WORKERS = 2
_KNOWN = 1024
_QUIET_TIMEOUT_S = 30.0

Compile = Callable[..., Any]


class GrammarTooComplex(ValueError):
    """A grammar takes more than `CPU_LIMIT_S` to compile."""

    def __init__(self) -> None:
        super().__init__(
            f"the grammar takes more than {CPU_LIMIT_S} s of processor time to compile: use fewer or shorter "
            "bounded repetitions (maxLength, maxItems, {m,n}), properties and alternatives"
        )


class GrammarExecutor:
    """An executor for vLLM's compilations: one at a time for each project, projects in turns.

    A project is known by its ``cache_salt``. ``workers`` threads compile.
    """

    def __init__(self, workers: int = _WORKERS) -> None:
        self._lock = threading.Condition()
        self._pending: OrderedDict[str, deque[tuple[Future[Any], Compile, Any]]] = OrderedDict()
        self._busy: set[str] = set()
        self._children: set[int] = set()
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, name=f"grammar-{number}", daemon=True)
            for number in range(workers)
        ]
        self._started = False

    def submit(self, function: Compile, request: Any) -> "Future[Any]":
        """Call ``function(request)`` in a thread, when it is the turn of the request's project."""
        future: Future[Any] = Future()
        project = getattr(request, "cache_salt", None) or ""
        with self._lock:
            if not self._started:
                self._started = True
                for worker in self._workers:
                    worker.start()
            self._pending.setdefault(project, deque()).append((future, function, request))
            self._lock.notify()
        return future

    def try_out(self, compile_grammar: Callable[[], Any]) -> None:
        """Compile in a child process. Raises `GrammarTooComplex`; other errors are left to the second try."""
        with self._lock:
            pid = os.fork()
            if pid == 0:
                _be_child(compile_grammar)
            self._children.add(pid)
        try:
            status = _wait(pid)
        finally:
            with self._lock:
                self._children.discard(pid)
        if os.WIFSIGNALED(status):
            raise GrammarTooComplex

    def quiet(self) -> None:
        """Give up everything that is pending, and return when no child and no thread is at work."""
        deadline = time.monotonic() + _QUIET_TIMEOUT_S
        with self._lock:
            for entries in self._pending.values():
                for future, _, _ in entries:
                    future.cancel()
            self._pending.clear()
            for pid in self._children:
                os.kill(pid, signal.SIGKILL)
            while self._busy and time.monotonic() < deadline:
                self._lock.wait(0.1)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `concurrent.futures.Executor.shutdown`."""
        if cancel_futures:
            self.quiet()
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if wait and self._started:
            for worker in self._workers:
                worker.join(_QUIET_TIMEOUT_S)

    def _work(self) -> None:
        with suppress(OSError):  # children and threads inherit it; without it, they take their share
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while (entry := self._next()) is not None:
            project, (future, function, request) = entry
            try:
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(function(request))
                    except Exception as error:  # noqa: BLE001 - the future carries it to vLLM's scheduler
                        future.set_exception(error)
            finally:
                with self._lock:
                    self._busy.discard(project)
                    self._lock.notify_all()

    def _next(self) -> tuple[str, tuple["Future[Any]", Compile, Any]] | None:
        """The next grammar of the project that has waited for longest; None after `shutdown`."""
        with self._lock:
            while True:
                for project, entries in self._pending.items():
                    if project not in self._busy:
                        entry = entries.popleft()
                        del self._pending[project]
                        if entries:
                            self._pending[project] = entries  # at the end: the others go first
                        self._busy.add(project)
                        return project, entry
                if self._closed:
                    return None
                self._lock.wait()


_executor = GrammarExecutor()
_known: OrderedDict[bytes, None] = OrderedDict()


def install() -> None:
    """Put the executor and the limit into vLLM's engine core, which is a fork of this process."""
    StructuredOutputManager.__init__ = _with_executor(StructuredOutputManager.__init__)
    for backend in (XgrammarBackend, GuidanceBackend):
        backend.compile_grammar = _limited(backend.compile_grammar)


def quiet() -> None:
    """End all compilations: a process that is to be dumped has no children."""
    _executor.quiet()


def _with_executor(init: Callable[..., None]) -> Callable[..., None]:
    def initialize(manager: Any, *args: Any, **kwargs: Any) -> None:
        init(manager, *args, **kwargs)
        if hasattr(manager, "executor"):
            manager.executor.shutdown(wait=False)
            manager.executor = _executor

    return initialize


def _limited(compile_grammar: Compile) -> Compile:
    def compile_limited(backend: Any, kind: Any, grammar: str, *args: Any, **options: Any) -> Any:
        digest = hashlib.sha256(f"{kind}\0{grammar}".encode(errors="replace")).digest()
        if digest not in _known:
            _executor.try_out(lambda: compile_grammar(backend, kind, grammar, *args, **options))
            _known[digest] = None
            while len(_known) > _KNOWN:
                _known.popitem(last=False)
        return compile_grammar(backend, kind, grammar, *args, **options)

    return compile_limited


def _be_child(compile_grammar: Callable[[], Any]) -> None:
    """Compile within the limits, and end. Never returns."""
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S + 1))
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        compile_grammar()
    finally:
        os._exit(0)


def _wait(pid: int) -> int:
    """Wait for a child within `_WALL_LIMIT_S`, and kill it after that. Its status as of waitpid(2)."""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(_WALL_LIMIT_S * 1000):
            os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]
    finally:
        os.close(descriptor)
