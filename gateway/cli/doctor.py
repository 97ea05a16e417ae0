"""``torpor doctor``: what this machine offers and lacks, each with what to do."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from sqlalchemy.exc import SQLAlchemyError

from coldstart.criu import program
from coldstart.criu.program import Criu, CriuMissing
from coldstart.sandbox.namespaces import Isolation
from engines import host_memory
from engines.errors import InvalidModel
from engines.fitting.choice import fitted
from engines.fitting.data_type import DataTypes
from engines.lifecycle.isolation import Examination, examine
from engines.sizing import Sizing
from gateway.cli.common import APPLY_CHANGES, Installation, config_option, json_option, run
from gateway.cli.errors import CommandError
from gateway.engine_host import configured_criu
from gateway.listening import CannotListen, check_ports
from gateway.storage.database import is_migrated

_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``level`` is ``ok``, ``lacks`` (something will not work) or ``fails``."""

    subject: str
    level: str
    what: str
    advice: str = ""


def _python() -> Finding:
    version = platform.python_version()
    if platform.python_version_tuple()[:2] != ("3", "11"):
        return Finding("Python", "lacks", version, "requirements.lock is for Python 3.11; use that")
    return Finding("Python", "ok", version)


def _vllm() -> Finding:
    """vLLM is imported in a process of its own: it takes seconds and starts threads."""
    code = "import vllm, torch; print(vllm.__version__, torch.__version__, torch.cuda.is_available())"
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and a constant
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(
            "vLLM", "fails", "importing it takes more than two minutes", "look for what loads the machine"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Finding("vLLM", "fails", last, "run `make setup`")
    vllm, torch, cuda = done.stdout.split()[-3:]
    device = "CUDA" if cuda == "True" else "CPU"
    return Finding("vLLM", "ok", f"{vllm} with torch {torch} on the {device}")


def _cpu() -> Finding:
    info = Path("/proc/cpuinfo")
    match = re.search(r"^flags\s*:(.*)$", info.read_text() if info.exists() else "", re.M)
    flags = set(match[1].split()) if match else set()
    count = os.cpu_count() or 1
    if "avx512f" in flags:
        return Finding("CPU", "ok", f"{count} cores, AVX-512{' with bf16' if 'avx512_bf16' in flags else ''}")
    if "avx2" in flags:
        return Finding("CPU", "lacks", f"{count} cores, AVX2 only", "engines run slower than with AVX-512")
    return Finding("CPU", "fails", f"{count} cores without AVX2", "vLLM on the CPU needs AVX2 at least")


def _memory() -> Finding:
    try:
        total, available = host_memory.total_bytes(), host_memory.available_bytes()
    except OSError as error:
        return Finding("memory", "lacks", "unknown", str(error))
    text = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB available"
    if available < 4 * _GIB:
        return Finding("memory", "lacks", text, "an engine of the default model takes about 3 GiB")
    return Finding("memory", "ok", text)


_ISOLATION_ADVICE = {
    "namespaces": "run as root with CAP_SYS_ADMIN and a kernel of 5.12 or newer: engines are then isolated, "
    "and can sleep in snapshots",
    "call filter": "run the gateway without a seccomp filter of its own: CRIU cannot dump engines under it",
}
_RESOURCE_ADVICE = "let the gateway's control group have the controller (systemd: Delegate=yes)"


def _isolation(isolation: Isolation) -> list[Finding]:
    """What separates engines from the host: a line for each part that is missing."""
    if not isolation.missing:
        what = (
            "namespaces, a root folder and a user for each engine, a filter of system calls, control groups"
        )
        return [Finding("isolation", "ok", what)]
    return [
        Finding(f"isolation: {name}", "lacks", reason, _ISOLATION_ADVICE.get(name, _RESOURCE_ADVICE))
        for name, reason in isolation.missing.items()
    ]


def _configuration(installation: Installation, file: Path) -> Finding:
    if installation.data.changed_since_start(file):
        what = f"{file}, changed since the running gateway started"
        return Finding("configuration", "lacks", what, APPLY_CHANGES)
    return Finding("configuration", "ok", str(file))


def _snapshots(installation: Installation, criu: Criu | None, examination: Examination) -> Finding:
    """CRIU's version, and whether it works here, tried in a sandbox as an engine's restore is."""
    config = installation.config.engines
    if not config.snapshots:
        return Finding("snapshots", "lacks", "switched off", "set [engines] snapshots = true")
    if criu is None:
        reason = _no_criu(config.criu or installation.data.criu_folder)
        return Finding("snapshots", "lacks", reason, "run `make criu`, or install CRIU 4.2 or newer")
    if examination.no_snapshots is not None:
        advice = "needs root with CAP_SYS_ADMIN and a kernel of 5.14 or newer"
        return Finding("snapshots", "lacks", examination.no_snapshots, advice)
    return Finding("snapshots", "ok", f"CRIU {criu.identity}, dumps and restores a process in a sandbox")


def _no_criu(folder: Path) -> str:
    try:
        program.find(folder)
    except CriuMissing as error:
        return str(error)
    return "CRIU has just been installed"


def _disk(installation: Installation) -> Finding:
    installation.data.create()
    free = shutil.disk_usage(installation.data.path).free
    text = f"{free / _GIB:.1f} GiB free for snapshots"
    if free < 4 * _GIB:
        return Finding(
            "disk", "lacks", text, "a snapshot of the default model takes 1.4 GB, twice while it is made"
        )
    return Finding("disk", "ok", text)


def _port(installation: Installation) -> Finding:
    server = installation.config.server
    running = installation.data.running()
    if running is not None:
        return Finding("port", "ok", f"{running.port}, held by the running gateway (process {running.pid})")
    try:
        check_ports(installation.config)
    except CannotListen as error:
        reason, _, advice = str(error).partition("; ")
        return Finding("port", "fails", reason, advice)
    return Finding("port", "ok", f"{server.port} is free")


def _database(installation: Installation) -> Finding:
    """Only looked at: a gateway may be running, and no lock is held."""
    url = installation.config.storage.database_url()
    kind = url.partition(":")[0].partition("+")[0]
    try:
        migrated = run(lambda: is_migrated(url))
    except CommandError as error:
        return Finding("database", "fails", str(error), "check [storage] database")
    except (SQLAlchemyError, OSError) as error:
        reason = type(error).__name__
        return Finding("database", "fails", f"{kind}: {reason}", "check [storage] database and its server")
    if migrated is None:
        return Finding("database", "lacks", f"{kind}: not made yet", "the gateway makes it when it starts")
    if not migrated:
        advice = "start the gateway, or start it again: it brings the schema up to date"
        return Finding("database", "lacks", f"{kind}: its schema is of an earlier version", advice)
    return Finding("database", "ok", kind)


def _models(installation: Installation) -> Finding:
    names = ", ".join(model.id for model in installation.config.models)
    if not names:
        return Finding("models", "lacks", "none", "add a [[models]] table to the configuration")
    return Finding("models", "ok", names)


def _sizes(installation: Installation) -> list[Finding]:
    """The memory arithmetic and the data type of each model that Torpor runs."""
    types = DataTypes(installation.data.data_types_file)
    findings = []
    for model in installation.config.models:
        try:
            spec = fitted(
                model.spec(installation.data.environment), installation.config.engines.memory_bytes, types.of
            )
        except InvalidModel as error:
            findings.append(Finding(f"model {model.id}", "fails", str(error), "change its [[models]] table"))
            continue
        if spec.sizing is not None:
            findings.append(
                _size(f"model {model.id}", spec.sizing, running=bool(installation.data.running()))
            )
    return findings


def _size(subject: str, sizing: Sizing, *, running: bool) -> Finding:
    what = f"{sizing.text()}; {sizing.dtype} ({sizing.dtype_reason})"
    advice = list(sizing.notes)
    available = host_memory.available_bytes()
    if sizing.total_bytes > available and not running:
        advice.append(f"only {available / _GIB:.1f} GiB are available now")
    return Finding(subject, "lacks" if advice else "ok", what, "; ".join(advice))


_CHECKS: tuple[Callable[[], Finding], ...] = (_python, _vllm, _cpu, _memory)
_INSTALLATION_CHECKS: tuple[Callable[[Installation], Finding], ...] = (
    _disk,
    _port,
    _database,
    _models,
)


@click.command()
@config_option
@json_option
def doctor(config_file: Path, as_json: bool) -> None:
    """What this machine offers and lacks. Exit code 1 where something needed fails."""
    findings = [check() for check in _CHECKS]
    try:
        installation = Installation.load(config_file)
    except CommandError as error:
        findings.append(Finding("configuration", "fails", str(error)))
    else:
        criu = configured_criu(installation.config, installation.data)
        examination = run(lambda: examine(criu))
        findings += _isolation(examination.isolation)
        findings.append(_configuration(installation, config_file))
        findings.append(_snapshots(installation, criu, examination))
        findings += [check(installation) for check in _INSTALLATION_CHECKS]
        findings += _sizes(installation)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            advice = f" - {finding.advice}" if finding.advice else ""
            click.echo(f"{finding.level:5}  {finding.subject:13}  {finding.what}{advice}")
    if any(finding.level == "fails" for finding in findings):
        raise CommandError("this machine lacks something that Torpor needs; see the lines marked 'fails'")
