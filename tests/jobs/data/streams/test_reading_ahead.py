"""Blocks of a bucket are read in Ray tasks before they are needed; the batches are those of a plain loop."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from pyarrow import fs

from tests.integration.harness.runner import Sandbox
from tests.jobs.checkpoints.s3_fixture import BUCKET, s3_server
from tests.jobs.data.streams.stream_fixture import rows, spec_of, write

pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys, ray, torch
from jobs.spec.job_spec import JobSpec
from jobs.workloads import load_workload, make_cursor

ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
spec = JobSpec.load(sys.argv[1])

def walk(ahead):
    workload, found, begun = load_workload(spec), [], 0
    cursor = make_cursor(workload, spec)
    if ahead:
        workload.read_ahead(cursor, 0, 1, "cpu")
    start = cursor.state_dict()
    for step in range(60):
        if step == 30:
            cursor.load_state_dict(start)  # as a rollback does
        batch = cursor.next_batch()
        found.append(workload.train_batch(batch.ids, batch.epoch, "cpu")[0].flatten().tolist())
        begun += sum(isinstance(block, ray.ObjectRef) for block in workload._stream.reader._held.values())
    workload.close()
    return found, begun

(plain, none), (ahead, begun) = walk(False), walk(True)
print(json.dumps({"same": plain == ahead, "again": plain[:30] == ahead[30:], "none": none, "begun": begun}))
"""


def test_blocks_of_a_bucket_are_begun_before_they_are_needed(tmp_path: Path) -> None:
    with s3_server() as options:
        bucket, path = fs.FileSystem.from_uri(f"s3://key:secret@{BUCKET}/rows?{options}")
        for split, count in (("train", 400), ("val", 20)):
            content = write(tmp_path / f"{split}.parquet", rows(count)).read_bytes()
            with bucket.open_output_stream(f"{path}/{split}.parquet") as file:
                file.write(content)
        url = f"s3://key:secret@{BUCKET}/rows?{options}"
        sandbox, stream = Sandbox(tmp_path), {"shuffle_rows": 16, "lanes": 2}
        sandbox.environment |= {"RAY_AUTH_MODE": "disabled"}
        data = {"root": url, "stream": stream}
        (tmp_path / "s.yaml").write_text(spec_of(tmp_path, name="s", data=data).to_yaml())
        run = sandbox.run(sys.executable, "-c", PROGRAM, "s.yaml")
    assert run.returncode == 0, run.stdout
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["same"]
    assert found["again"]
    assert found["none"] == 0
    assert found["begun"] > 0
