"""The configuration file: what loads, and the one line that says why something does not."""

import re
from dataclasses import MISSING, fields
from datetime import date
from pathlib import Path

import pytest

from engines.spec import LoraSettings, Task
from gateway.config.sections import SECTIONS, ConfigError, load_config
from metering.prices import Price
from tests.process import MODELS, REPOSITORY

MODEL = MODELS / "smollm2-135m"
FAR = "[[models]]\nid = 'a'\nurl = 'http://a'\n"


def _load(tmp_path: Path, text: str, **environment: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
    file = tmp_path / "torpor.toml"
    file.write_text(text)
    return load_config(file, environment)


def test_the_example_loads(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(MODELS)
    example = (REPOSITORY / "gateway/torpor.example.toml").read_text()
    config = _load(tmp_path, example)
    assert [model.id for model in config.models] == ["smollm2-135m", "all-minilm-l6-v2"]
    assert config.models[1].task is Task.EMBED
    assert config.storage.data_dir == tmp_path / ".torpor"


def test_the_default_folder_is_the_files_own_too(tmp_path: Path) -> None:
    assert _load(tmp_path, "").storage.data_dir == tmp_path / ".torpor"


def test_every_key_is_documented_with_its_default() -> None:
    document = (REPOSITORY / "docs/reference/configuration.md").read_text()
    for section, kind in {**SECTIONS, "models.lora": LoraSettings}.items():
        text = re.split(r"^## ", document.partition(f"\n## {section}\n")[2], flags=re.M)[0]
        rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, flags=re.M))
        assert set(rows) == {item.name for item in fields(kind)}, section
        for item in fields(kind):
            if item.default is MISSING or item.default in (None, ()) or isinstance(item.default, Path):
                continue
            visible = str(item.default).lower() if isinstance(item.default, bool) else str(item.default)
            assert visible in rows[item.name], item.name


def test_the_environment_overrides(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        "[server]\nport = 1000\n",
        TORPOR_PORT="2000",
        TORPOR_SERVER__LOG_FORMAT="json",
        TORPOR_SERVER__TRUSTED_PROXIES="10.0.0.1, 10.1.0.0/16",
        TORPOR_LIMITS__WAKE_TIMEOUT_S="1.5",
        TORPOR_API_KEY="ignored: no section",
    )
    assert config.server.port == 2000
    assert config.server.log_format == "json"
    assert config.server.trusted_proxies == ("10.0.0.1", "10.1.0.0/16")
    assert config.limits.wake_timeout_s == 1.5


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "[server]\n\nprot = 1\n",
            "torpor.toml:3: [server] prot: unknown key; did you mean port? (see docs/",
        ),
        ("[sever]\nport = 1\n", "torpor.toml:1: sever: unknown section; did you mean server?"),
        ("port = 1\n", "torpor.toml:1: port: unknown section"),
        ("[server]\nport = 'x'\n", "torpor.toml:2: [server] port: must be an integer, not 'x'"),
        ("[server]\nport = true\n", "must be an integer, not True"),
        ("[server]\nport = 70000\n", "must be between 1 and 65535"),
        ("[server]\nlog_format = 'xml'\n", "must be json or text"),
        (
            f"{FAR}[[models]]\nid = 'b'\nsource = '.'\n[models.lora]\nslots = 2\ncpu_slots = 1\n",
            "torpor.toml:9: [models.lora] cpu_slots: must be at least slots (2)",
        ),
        (
            f"{FAR}[[models]]\nid = 'b'\nsource = '.'\n[models.lora]\nslot = 2\n",
            "torpor.toml:8: [models.lora] slot: unknown key; did you mean slots?",
        ),
        ("[[models]]\nid = 'a'\nurl = 'http://a'\n[models.lora]\n", "is for models that Torpor runs"),
        ("[server]\ntls_key = 'key.pem'\n", "tls_certificate and tls_key go together"),
        ("[limits]\nmax_body_bytes = 0\n", "torpor.toml:2: [limits] max_body_bytes: must be more than 0"),
        ("[limits]\nwake_timeout_s = nan\n", "must be more than 0"),
        ("server = 1\n", "must be a table, [server]"),
        ("[models]\nid = 'a'\n", "must be an array of tables, [[models]]"),
        ("[[models]]\nurl = 'http://a'\n", "torpor.toml:1: [[models]] id: is required"),
        ("[[models]]\nid = 'a b'\nurl = 'http://a'\n", "torpor.toml:2: [[models]] id: must match"),
        (
            "[[models]]\nid = '..'\nurl = 'http://a'\n",
            "torpor.toml:2: [[models]] id: must match [A-Za-z0-9_-]",
        ),
        ("[[models]]\nid = 'a'\n", "give either source or url"),
        ("[[models]]\nid = 'a'\nurl = 'ftp://a'\n", "must start with http:// or https://"),
        ("[[models]]\nid = 'a'\nurl = 'http://a'\ntask = 'sing'\n", "must be one of generate, embed"),
        (
            "[[models]]\nid = 'a'\nurl = 'http://a'\n[[models]]\nid = 'a'\nurl = 'http://b'\n",
            "torpor.toml:5: [[models]] id: there are two models 'a'",
        ),
        ("[[models]]\nid = 'a'\nurl = 'http://a'\napi_key_env = 'NOT_THERE'\n", "NOT_THERE is not set"),
        ("[[models]]\nid = 'a'\nsource = 'nowhere'\n", "torpor.toml:3: [[models]] source:"),
        ("[server\n", "not valid TOML"),
        (
            "[limits]\nrequests_per_minute = 0\n",
            "torpor.toml:2: [limits] requests_per_minute: must be more than 0",
        ),
        ("[limits]\ntokens_per_minute = 3000000000\n", "must be at most 2147483647"),
        ("prices = 1\n", "must be an array of tables, [[prices]]"),
        (FAR + "[[prices]]\nmodel = 'b'\n", "torpor.toml:5: [[prices]] model: there is no model 'b'"),
        (
            FAR + "[[prices]]\nmodel = 'a'\ninput = 0.15\n",
            'decimal number in quotes, such as "0.15", not 0.15',
        ),
        (
            FAR + "[[prices]]\nmodel = 'a'\ninput = 'much'\n",
            "torpor.toml:6: [[prices]] input: must be a decimal",
        ),
        (
            FAR + "[[prices]]\nmodel = 'a'\noutput = '-1'\n",
            "[[prices]] output: must be between 0 and 1000000",
        ),
        (FAR + "[[prices]]\nmodel = 'a'\ncached_input = '0.0000001'\n", "must have at most 6 decimal places"),
        (
            FAR + "[[prices]]\nmodel = 'a'\nsince = '2026-01-01'\n",
            "must be a date, such as 2026-01-31 without",
        ),
        (
            FAR + "[[prices]]\nmodel = 'a'\n" * 2,
            "torpor.toml:7: [[prices]] model: there are two prices for the",
        ),
    ],
)
def test_a_fault_is_one_line_that_says_where_and_what(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("TORPOR_PORT", "many", "TORPOR_PORT: must be an integer"),
        ("TORPOR_SERVER__PROT", "1", "TORPOR_SERVER__PROT: "),
        ("TORPOR_NOWHERE__KEY", "1", "there is no section [nowhere]"),
    ],
)
def test_a_fault_in_the_environment_names_the_variable(
    tmp_path: Path, variable: str, value: str, reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, "", **{variable: value})
    assert reason in str(caught.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torpor setup"):
        load_config(tmp_path / "nowhere.toml", {})


def test_a_remote_model_has_its_key_from_the_environment(tmp_path: Path) -> None:
    text = "[[models]]\nid = 'far'\nurl = 'https://a/v1'\napi_key_env = 'FAR_KEY'\n"
    config = _load(tmp_path, text, FAR_KEY="secret")
    spec = config.models[0].spec({"FAR_KEY": "secret"})
    assert spec.api_key == "secret"
    assert spec.url == "https://a"
    assert "secret" not in repr(spec)


def test_prices_are_exact_and_hold_from_their_day(tmp_path: Path) -> None:
    text = (
        FAR
        + """
[[prices]]
model = "a"
input = "0.15"
output = "0.600001"

[[prices]]
model = "a"
since = 2026-07-01
input = "0.3"
cached_input = "0.1"
"""
    )
    first, second = (price.entry() for price in _load(tmp_path, text).prices)
    assert (first.since, first.price) == (date.min, Price(150_000, 150_000, 600_001))
    assert (second.since, second.price) == (date(2026, 7, 1), Price(300_000, 100_000, 0))


LOCAL = f"[[models]]\nid = 'a'\nsource = '{MODEL}'\n"


def test_a_models_parsers_and_template(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    text = LOCAL + "tool_parser = 'hermes'\nreasoning_parser = 'qwen3'\nchat_template = 'own.jinja'\n"
    spec = _load(tmp_path, text).models[0].spec({})
    assert (spec.tool_parser, spec.reasoning_parser) == ("hermes", "qwen3")
    assert spec.chat_template == tmp_path / "own.jinja"
    assert spec.serves_tools


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LOCAL + "tool_parser = 'hermess'\n", "tool_parser: vLLM has no tool parser 'hermess'; did you mean"),
        (LOCAL + "tool_parser = 'zzz'\n", "it has apertus, "),
        (LOCAL + "reasoning_parser = 'quen3'\n", "reasoning parser 'quen3'; did you mean 'qwen3'?"),
        (LOCAL + "chat_template = 'none.jinja'\n", "chat_template: no such file: "),
        (LOCAL + "chat_template = 'broken.jinja'\n", "chat_template: the chat template is broken: "),
        (FAR + "tool_parser = 'hermes'\n", "tool_parser: is for models that Torpor runs and that generate"),
        (FAR + "chat_template = 'broken.jinja'\n", "chat_template: is for models that Torpor runs"),
        (LOCAL + "task = 'embed'\nreasoning_parser = 'qwen3'\n", "reasoning_parser: is for models that"),
    ],
)
def test_a_parser_or_template_that_cannot_be_used(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "broken.jinja").write_text("{% for message in messages %}")
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert reason in str(caught.value)


def test_a_plugin_brings_parsers_of_its_own(tmp_path: Path) -> None:
    text = LOCAL + "tool_parser = 'ours'\nengine_args = ['--tool-parser-plugin=/opt/ours.py']\n"
    assert _load(tmp_path, text).models[0].tool_parser == "ours"
