"""Limits of memory and tasks, and shares of the processor, in control groups of this machine."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstart.sandbox.control_groups import CONTROLLERS, ControlGroup, ControlGroups, Limits

MIB = 1 << 20
ENTER = """
import sys
for path in sys.argv[1:]:
    with open(path, "w") as processes:
        processes.write("0")
"""


@pytest.fixture(scope="module")
def groups() -> ControlGroups:
    created = ControlGroups.find()
    assert created.missing == {}, "the tests of control groups need root and the three controllers"
    return created


@pytest.fixture
def group(groups: ControlGroups) -> Iterator[ControlGroup]:
    created = groups.create("test")
    yield created
    created.remove()
    assert not any(entry.parent.exists() for entry in created.entries)


def start(group: ControlGroup, code: str) -> subprocess.Popen[str]:
    """A process that enters the group and then runs the code."""
    command = [sys.executable, "-S", "-c", ENTER + textwrap.dedent(code), *map(str, group.entries)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def own_groups() -> dict[str, str]:
    """This process's group by controller, as the kernel tells it."""
    lines = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    return {name: path for _, names, path in lines for name in names.split(",")}


def test_a_group_is_below_this_processs_own(group: ControlGroup) -> None:
    with start(group, "print(open('/proc/self/cgroup').read())") as process:
        inside = {
            name: path
            for _, names, path in (line.split(":", 2) for line in process.communicate()[0].split())
            for name in names.split(",")
        }
    for name in CONTROLLERS:
        parent = own_groups().get(name, own_groups().get("", ""))
        assert Path(inside.get(name, inside.get("", ""))).parent == Path(parent)


def test_what_allocates_more_than_its_limit_is_ended(group: ControlGroup) -> None:
    group.limit(Limits(64 * MIB, 100, 1.0))
    with start(group, "held = b'x' * (200 << 20)") as process:
        process.communicate()
    assert process.returncode == -9
    kills = group.memory_kills()
    assert kills is not None
    assert kills.processes >= 1
    assert kills.at_limit


def test_what_stays_below_its_limit_goes_on(group: ControlGroup) -> None:
    group.limit(Limits(200 * MIB, 100, 1.0))
    with start(group, "held = b'x' * (100 << 20); print(len(held))") as process:
        assert process.communicate()[0].split() == [str(100 * MIB)]
    kills = group.memory_kills()
    assert kills is not None
    assert kills.processes == 0


def test_what_forks_more_than_its_limit_is_refused(group: ControlGroup) -> None:
    code = """
    import os, time
    try:
        for number in range(20):
            if os.fork() == 0:
                time.sleep(1)
                os._exit(0)
    except BlockingIOError:
        print("refused at", number)
    """
    group.limit(Limits(None, 5, 1.0))
    with start(group, code) as process:
        assert process.communicate()[0].split() == ["refused", "at", "4"]


def test_processors_are_shared_by_weight(groups: ControlGroups) -> None:
    """Two that spin on one core have its time in the ratio of their weights."""
    code = f"""
    import os, time
    os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        pass
    print(time.process_time())
    """
    light, heavy = groups.create("light"), groups.create("heavy")
    try:
        light.limit(Limits(None, 100, 1.0))
        heavy.limit(Limits(None, 100, 4.0))
        with start(light, code) as first, start(heavy, code) as second:
            seconds = [float(process.communicate()[0]) for process in (first, second)]
    finally:
        for created in (light, heavy):
            created.remove()
    assert 2 < seconds[1] / seconds[0] < 8, seconds


def test_the_groups_of_an_ended_process_are_swept_and_others_are_not(groups: ControlGroups) -> None:
    code = "from coldstart.sandbox.control_groups import ControlGroups; ControlGroups.find().create('left')"
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3]) as process:
        process.wait()
    kept = groups.create("kept")
    parents = {entry.parents[1] for entry in kept.entries}
    assert all(any(parent.glob(f"torpor-engine-{process.pid}-*")) for parent in parents)
    groups.sweep()
    assert not any(any(parent.glob(f"torpor-engine-{process.pid}-*")) for parent in parents)
    assert all(entry.exists() for entry in kept.entries)
    kept.remove()


def test_a_group_in_use_is_not_removed_in_silence(group: ControlGroup) -> None:
    with start(group, "import time; print('in', flush=True); time.sleep(60)") as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()
        with pytest.raises(OSError, match="processes are left"):
            group.remove()
        assert time.monotonic() - began < 10
        process.kill()


UNIFIED = Path("/sys/fs/cgroup/unified")
# The unified hierarchy of this machine may have hugetlb alone, whose logic is that of the other controllers.
FIND = """
import os, sys
from pathlib import Path
from coldstart.sandbox.control_groups import ControlGroups
parent = Path(sys.argv[1])
(parent / "cgroup.procs").write_text("0")
groups = ControlGroups.find(("hugetlb",))
print(groups.missing or "nothing is missing")
if not groups.missing:
    group = groups.create("x")
    print((group.entries[0].parent / "hugetlb.2MB.max").exists(), group.entries[0].parents[1] == parent)
    group.remove()
print(Path("/proc/self/cgroup").read_text().splitlines()[-1].removeprefix("0::"))
"""


@pytest.fixture
def unified() -> Iterator[Path]:
    if "hugetlb" not in (UNIFIED / "cgroup.controllers").read_text():
        pytest.fail("the unified hierarchy has no controller to try")
    enabled = UNIFIED / "cgroup.subtree_control"
    enabled.write_text("+hugetlb")
    folder = UNIFIED / f"torpor-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    for inner in sorted(folder.rglob("*"), reverse=True):
        if inner.is_dir():
            inner.rmdir()
    folder.rmdir()
    enabled.write_text("-hugetlb")


def found(folder: Path) -> list[str]:
    command = [sys.executable, "-c", FIND, str(folder)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.splitlines()


def test_in_the_unified_hierarchy_a_process_that_is_alone_makes_room(unified: Path) -> None:
    assert found(unified) == ["nothing is missing", "True True", f"/{unified.name}/torpor-gateway"]


def test_in_the_unified_hierarchy_others_are_left_where_they_are(unified: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        (unified / "cgroup.procs").write_text(str(other.pid))
        lines = found(unified)
        other.kill()
    assert "other processes are in the gateway's control group" in lines[0]
    assert lines[-1] == f"/{unified.name}"
    assert not (unified / "torpor-gateway").exists()


MOUNTS = """
25 1 0:22 / /sys rw - sysfs sysfs rw
30 25 0:26 {root} /sys/fs/cgroup/my\\040memory rw,nosuid - cgroup cgroup rw,memory
31 25 0:27 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
""".strip()


@pytest.mark.parametrize(
    ("root", "group", "reasons"),
    [
        ("/docker/1", "/docker/1", {"no group can be made in"}),
        ("/docker/1", "/docker/1/inner", {"no group can be made in"}),
        ("/docker/1", "/docker/2", {"is not below"}),
        ("/docker/1", "/", {"is not below"}),
    ],
)
def test_a_containers_mounts_are_understood(tmp_path: Path, root: str, group: str, reasons: set[str]) -> None:
    mounts, membership = tmp_path / "mountinfo", tmp_path / "cgroup"
    mounts.write_text(MOUNTS.format(root=root) + "\n")
    membership.write_text(f"5:memory:{group}\n3:cpu,cpuacct:{group}\n1:name=systemd:/x\n0::/\n")
    groups = ControlGroups.find(("memory", "cpu", "pids"), mounts, membership)
    assert groups.missing["pids"] == "the kernel has no such controller, or it is not mounted"
    for name in ("memory", "cpu"):
        assert any(reason in groups.missing[name] for reason in reasons)
    if group == "/docker/1/inner":
        assert "/sys/fs/cgroup/my memory/inner" in groups.missing["memory"]
        assert "/sys/fs/cgroup/cpu,cpuacct/inner" in groups.missing["cpu"]
