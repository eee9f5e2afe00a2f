"""A browser on the page of a service with played jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser import chromium
from tests.service.api.api_fixture import Api
from tests.service.page.page_fixture import served, visitor
from tests.service.page.played_jobs import played_jobs


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    api = played_jobs(tmp_path_factory.mktemp("page"))
    yield api
    api.engine.dispose()


@pytest.fixture(scope="module")
def url(api: Api) -> Iterator[str]:
    with served(api) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, url: str, api: Api) -> Iterator[Any]:
    with visitor(browser, url, token=api.tokens["submit"]) as page:
        yield page
