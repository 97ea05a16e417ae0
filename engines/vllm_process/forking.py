"""The engine core as a fork of the API server's process, which has imported most of what it needs.

vLLM forks its engine core on a GPU, but spawns it on the CPU, where it imports everything again. A forked
core is there six seconds earlier, and holds much of its memory at the same addresses and with the same
content as the process that it came from: a snapshot has it once (`coldstart.criu.memory_file`).
"""

import gc
import os
import signal
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path

_STANDARD = 3


class EngineCoreProcess(ForkProcess):
    """A fork that lets go of its parent's sockets and pipes."""

    def start(self) -> None:
        """Forks. Objects made until now are left alone by the garbage collection of both processes."""
        self._parents = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd >= _STANDARD]
        gc.collect()
        gc.freeze()  # a collection writes to each object that it looks at
        super().start()

    def run(self) -> None:
        """In the new process."""
        signal.set_wakeup_fd(-1)  # it is the event loop's of the parent
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in self._parents:
            # Put in its place, not closed: the objects that own it here may close it at any time, and must
            # not hit a descriptor that was opened since.
            if Path(f"/proc/self/fd/{fd}").exists():
                os.dup2(null, fd, inheritable=False)
        os.close(null)
        super().run()


class _Context(ForkContext):
    Process = EngineCoreProcess


def context() -> ForkContext:
    """What `multiprocessing.get_context` answers, with such processes."""
    return _Context()
