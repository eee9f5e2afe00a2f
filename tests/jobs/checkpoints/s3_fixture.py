"""An S3 server of the tests' own, on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

BUCKET = "checkpoints"


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """For the length of the block; gives the options that a URL needs to reach it. Any key will do."""
    moto = pytest.importorskip("moto.server")
    import boto3

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", **keys)
    client.create_bucket(Bucket=BUCKET)
    client.close()
    endpoint = f"{host}%3A{port}"
    yield f"region=us-east-1&scheme=http&endpoint_override={endpoint}&allow_bucket_creation=true"
    server.stop()
