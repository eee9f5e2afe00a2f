"""The description of the API against the API: whatever is sent, the answer is one that is documented."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service.api.api_fixture import Api

pytestmark = pytest.mark.slow
for kind in ("application/zip", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, st.binary(max_size=200))
    schemathesis.serializer(kind)(lambda _, value: value)
EXAMPLES = 12
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    api = Api(tmp_path_factory.mktemp("api"), auth=False)
    api.submitted()
    yield api
    api.engine.dispose()


def test_every_answer_is_documented_and_none_is_a_server_error(api: Api) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", api.app)
    tried = 0
    for found in schema.get_all_operations():
        fuzz(found.ok())
        tried += 1
    assert tried >= 18


def fuzz(operation: Any) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def holds(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    holds()


def test_the_description_names_every_endpoint_of_the_contract(api: Api) -> None:
    paths = api.client().get("/openapi.json").json()["paths"]
    wanted = {
        "/v1/jobs": {"get", "post"},
        "/v1/jobs/{job_id}": {"get", "delete"},
        **{f"/v1/jobs/{{job_id}}/{what}": {"post"} for what in ("stop", "resume", "clone")},
        **{
            f"/v1/jobs/{{job_id}}/{what}": {"get"}
            for what in ("logs", "events", "incidents", "metrics", "checkpoints", "report")
        },
        "/healthz": {"get"},
        "/readyz": {"get"},
        "/metrics": {"get"},
    }
    assert {path: set(paths[path]) for path in wanted} == wanted


def test_the_storage_folder_holds_only_what_the_service_wrote(api: Api) -> None:
    assert [path for path in Path(api.root).rglob("*") if path.is_file()] == []
