"""Secrets are stars wherever a spec is shown, whatever their type; settings are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.client.folder_backend import FolderBackend
from jobs.report.compare import compare
from jobs.report.data import read_run
from jobs.report.page import render
from jobs.spec.job_spec import JobSpec
from jobs.spec.masking import MASKED, Mask, is_secret, masked, masked_result, masked_spec

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": SECRET},
        {"password": 12345678},
        {"token": {"value": SECRET}},
        {"credentials": [{"user": SECRET}]},
        {"clients": [{"name": "a", "dbPassword": SECRET}]},
        {"headers": {"Authorization": f"Basic {SECRET}"}},
        {"header": f"Authorization: Bearer {SECRET}"},
        {"args": [f"--api-key={SECRET}"]},
        {"connection": f"Server=db;Password={SECRET};Timeout=5"},
        {"url": f"https://me:{SECRET}@host/x?page=1"},
        {"url": f"https://host/x?access_token={SECRET}"},
        {"slack_webhook": f"https://hooks.example.com/{SECRET}"},
        {"password2": SECRET},
        {"env": [{"name": "API_KEY", "value": SECRET}]},
        {"args": ["--api-key", SECRET]},
        {"command": f"run --api-key {SECRET} --lr 0.1"},
        {"body": f'{{"password": "{SECRET}"}}'},
        {"HFToken": SECRET},
        {"api key": SECRET},
        {"pass": SECRET},
        {"url": f"https://host/x?sig={SECRET}"},
        {"urls": f"https://a:{SECRET}@host and https://b:{SECRET}@host"},
        {"notices": f"https://hooks.slack.com/services/T0/B0/{SECRET}"},
        {"login": f"ghp_{SECRET}{SECRET}"},
        {"creds": SECRET},
        {"smtppass": SECRET},
        {"url": f"https://b.s3.amazonaws.com/x?X-Amz-Signature={SECRET}"},
        {"url": f"https://cdn.example.com/x?Expires=1&Signature={SECRET}&Key-Pair-Id=K"},
        {"body": json.dumps(json.dumps({"api_key": SECRET}))},
        {"headers": [["X-Api-Key", SECRET]]},
        {"env": [{"Name": "API_KEY", "Value": SECRET}, {"key": "API_KEY", "val": SECRET}]},
        {"login": f"npm_{SECRET}{SECRET}"},
        {"pem": f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n"},
    ],
    ids=str,
)
def test_no_secret_of_any_type_is_shown(tmp_path: Path, options: dict[str, Any]) -> None:
    spec = JobSpec.from_dict({"name": "job", "workload": "my:Own", "options": options})
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "spec.yaml").write_text(spec.to_yaml())
    (folder / "metrics.jsonl").write_text('{"action": "applied", "step": 1, "attempt": 1}\n')
    other = tmp_path / "other"
    other.mkdir()
    shown = [
        str(masked_spec(spec.model_dump(mode="json"))),
        render(read_run(folder)),
        str(compare(folder, other).spec),
        str(FolderBackend(tmp_path).get("job").spec),
    ]
    assert not [text for text in shown if SECRET in text or "12345678" in text]
    assert JobSpec.load(folder / "spec.yaml").options == options, "the job itself has them"


def test_a_spec_names_more_secrets(tmp_path: Path) -> None:
    options = {"launch_phrase": SECRET, "deep": {"Launch_Code": 4711}, "lr": 0.1}
    spec = JobSpec.from_dict({"workload": "my:Own", "options": options, "secrets": ["launch_*"]})
    shown = masked_spec(spec.model_dump(mode="json"))
    assert shown["options"] == {"launch_phrase": MASKED, "deep": {"Launch_Code": MASKED}, "lr": 0.1}
    assert shown["secrets"] == ["launch_*"]
    (tmp_path / "spec.yaml").write_text(spec.to_yaml())
    assert SECRET not in render(read_run(tmp_path))


def test_settings_stay_readable() -> None:
    settings = {
        "max_tokens": 2048,
        "pad_token_id": 0,
        "tokens_per_batch": 4,
        "key_dim": 64,
        "use_auth": True,
        "token": None,
        "tokenizer": "bpe",
        "monkey": "x",
        "author": "me",
        "note": "lr=0.1; momentum: 0.9",
        "url": "https://host/x?page=1",
        "pin_memory": 1,
        "root": "/data/hf_datasets_of_mine_that_are_long/x",
        "variables": [{"name": "LR", "value": "0.1"}],
        "args": ["--lr", "0.1"],
        "pairs": [["momentum", "0.9"], ["token", 3]],
        "num_pass": 2,
    }
    assert masked(settings) == settings
    assert not any(map(is_secret, ("tokenizer", "keyboard", "monkey", "author")))


def test_a_spec_without_secrets_is_shown_as_it_is() -> None:
    spec = JobSpec.from_dict({}).model_dump(mode="json")
    assert masked_spec(spec) == spec


def test_text_that_is_no_yaml_is_masked_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(f"name: x\noptions: {{\napi_key: {SECRET}\n")
    text = read_run(tmp_path).spec_text
    assert SECRET not in text
    assert "name: x" in text


@pytest.mark.parametrize(
    "value",
    [
        f"postgres://me:{SECRET}@host/db",
        f"https://host/x?access_token={SECRET}",
        f"api-key={SECRET},x=1",
        f'{{"password": "{SECRET}"}}',
    ],
)
def test_a_secret_inside_a_value_is_masked_in_a_log_on_its_own(value: str) -> None:
    for mask in (Mask({"SETTINGS": value}), Mask({}, {"options": {"connection": [value]}})):
        assert SECRET not in mask.text(f"could not log in with {SECRET}")


def test_each_key_of_a_list_and_the_key_of_a_header_are_masked_in_a_log() -> None:
    mask = Mask(
        {"TOKENS": f"{SECRET},abcdefgh"}, {"options": {"headers": {"Authorization": "Bearer 12345678"}}}
    )
    assert mask.text(f"{SECRET} abcdefgh 12345678") == f"{'*' * 14} {'*' * 8} {'*' * 8}"
    mail = {"notify": [{"kind": "email", "url": f"smtp://me:{SECRET}@host"}]}
    assert SECRET not in Mask({}, mail).text(f"refused: {SECRET}")


def test_a_secret_is_masked_in_a_log_as_it_is_written_in_a_url_and_in_json() -> None:
    mask = Mask({"HF_TOKEN": 'a/b+c"\n1234'})
    assert mask.text("GET /x?t=a%2Fb%2Bc%22%0A1234") == f"GET /x?t={'*' * 19}"
    assert mask.text(r'{"t": "a/b+c\"\n1234"}') == f'{{"t": "{"*" * 13}"}}'


def test_a_result_is_shown_without_the_secrets_that_its_texts_quote(tmp_path: Path) -> None:
    result = {
        "status": "failed",
        "error": f"cannot log in with {SECRET}",
        "resume": "gradguard train x.yaml --set options.api_key=another1 --resume",
        "metrics": {"token_accuracy": 0.5},
    }
    spec = {"options": {"db": f"postgres://me:{SECRET}@host/db"}}
    shown = masked_result(result, spec)
    assert (shown["status"], shown["metrics"]) == ("failed", result["metrics"])
    assert not [text for text in (SECRET, "another1") if text in str(shown)]
    (tmp_path / "spec.yaml").write_text(str({"name": "x", "workload": "my:Own", **spec}))
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert not [text for text in (SECRET, "another1") if text in render(read_run(tmp_path))]


def test_the_secrets_of_a_spec_are_masked_in_a_log() -> None:
    mask = Mask({"HOST": "example"}, {"options": {"api_key": SECRET, "pin": 1}, "secrets": ["host"]})
    assert mask(f"{SECRET} at example".encode()) == b"*" * 14 + b" at *******"
