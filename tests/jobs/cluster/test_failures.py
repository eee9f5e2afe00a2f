"""A failed training is explained in one line that names the rank; the rest is in the log."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import WorkerGroupError
from torch import Tensor, nn

from guard import RankLost
from jobs.cluster.failures import WorkerFailed, crash_file, explain, log_crashes, log_failure
from jobs.failures import CAUSES, LONGEST_LINE, Failure, explain_error
from jobs.layout.unused import name_parameters
from jobs.training.watchdog import WorkerStalled
from jobs.workloads.errors import WorkloadError

CONSEQUENCE = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711")


def test_the_cause_is_reported_rather_than_its_effects_on_other_ranks() -> None:
    error = WorkerGroupError("failed", {0: CONSEQUENCE, 1: ValueError("first\nthe last line")})
    assert explain(error).line == "rank 1: ValueError: the last line"


def test_a_rank_that_only_names_the_cause_on_another_one_is_left_out() -> None:
    failures = {0: RankLost("rank 1 failed: ValueError: no label"), 1: ValueError("no label")}
    assert explain(WorkerGroupError("failed", failures)).line == "rank 1: ValueError: no label"


def test_a_lost_connection_is_reported_where_nothing_else_is_known() -> None:
    assert explain(WorkerGroupError("failed", {0: CONSEQUENCE})).line.startswith(
        "rank 0: RuntimeError: [gloo"
    )


def test_dead_processes_are_named() -> None:
    assert "worker process died" in explain(WorkerGroupError("failed", {2: ActorDiedError()})).line
    assert explain(ActorDiedError()).line == "the training controller died"
    oom = RuntimeError("Task was killed due to the node running low on memory.")
    assert "ran out of memory" in explain(WorkerGroupError("failed", {0: oom})).line
    killed = OutOfMemoryError("Task was killed due to the node running low on memory.\nRefer to the manual.")
    assert explain(killed).line == "the training controller was killed because its node ran out of memory"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ActorDiedError(), "cluster"),
        (OutOfMemoryError("Task was killed due to the node running low on memory."), "out_of_memory"),
        (ValueError("in the driver"), "job"),
        (WorkerGroupError("failed", {0: CONSEQUENCE, 1: ActorDiedError()}), "worker_lost"),
        (WorkerGroupError("failed", {1: ValueError("in the loop")}), "job"),
        (WorkerGroupError("failed", {0: RuntimeError("killed by the memory monitor")}), "out_of_memory"),
        (WorkerGroupError("failed", {0: RuntimeError("the health check timed out")}), "stalled"),
        (WorkerGroupError("failed", {0: WorkerStalled("no batch was finished for 9 s")}), "stalled"),
        (WorkerGroupError("failed", {}), "job"),
    ],
)
def test_each_failure_has_a_cause_for_programs(error: BaseException, cause: str) -> None:
    assert explain(error).cause == cause
    assert cause in CAUSES


def test_the_line_is_short_however_long_the_error_is() -> None:
    assert len(explain(ValueError("x" * 10_000)).line) == LONGEST_LINE
    assert explain(ValueError()).line == "ValueError: no message"


def test_an_error_whose_text_raises_another_one_is_a_line_too() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert explain_error(Unspeakable()).line == "Unspeakable: its text cannot be shown"


def test_the_log_grows_and_holds_the_traceback(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    for rank in (0, 1):
        try:
            raise ValueError(f"broken {rank}")
        except ValueError as error:
            log_failure(log, {rank: error})
    text = log.read_text()
    assert text.count("Traceback") == 2
    assert "rank 1" in text
    log_failure(tmp_path / "no" / "folder", ValueError("a log that cannot be written is no matter"))


DDP = RuntimeError(
    "Expected to have finished reduction in the prior iteration before starting a new one. This error "
    "indicates that your module has parameters that were not used in producing loss.\nParameter indices "
    "which did not receive grad for rank 0: 2 3\n In addition, you can set TORCH_DISTRIBUTED_DEBUG"
)
GPU_FULL = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"
)


@pytest.mark.parametrize(
    ("error", "cause", "retry", "says"),
    [
        (GPU_FULL, "out_of_memory", True, ("GPU's memory is full", "data.batch_size", "2.00 GiB")),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
         "out_of_memory", True, ("memory of this machine is full",)),
        (MemoryError(), "out_of_memory", True, ("memory of this machine is full",)),
        (RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronous"),
         "job", False, ("index out of range", "number of classes", "scale.device: cpu")),
        (DDP, "job", False, ("no gradient", "requires_grad_(False)", "scale.workers to 1")),
        (RuntimeError("mat1 and mat2 must have the same dtype, but got Double and Float"),
         "job", False, ("sizes or types of two tensors do not fit", "Double and Float")),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x5 and 6x3)"),
         "job", False, ("4x5 and 6x3",)),
        (NameError("name 'scle' is not defined"), "job", False, ("NameError: name 'scle'",)),
        (ConnectionError("the bucket does not answer"), "job", True, ("ConnectionError",)),
        (WorkloadError("loss() must return a scalar"), "job", False, ("loss() must return a scalar",)),
    ],
)  # fmt: skip
def test_known_failures_say_what_to_do(
    error: Exception, cause: str, retry: bool, says: tuple[str, ...]
) -> None:
    found = explain(WorkerGroupError("failed", {0: WorkerFailed(explain_error(error)), 1: CONSEQUENCE}))
    assert (found.cause, found.retry) == (cause, retry)
    assert found.line.startswith("rank 0: ")
    assert all(words in found.line for words in says)
    assert "node ran out" not in found.line
    assert "\n" not in found.line


def test_a_full_gpu_is_not_taken_for_a_full_node_where_ray_hands_the_error_on() -> None:
    found = explain(WorkerGroupError("failed", {0: GPU_FULL}))
    assert found.cause == "out_of_memory"
    assert "GPU" in found.line
    assert "killed" not in found.line


def test_the_parameters_that_ddp_counts_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    error = RuntimeError(str(DDP))
    name_parameters(error, model)
    assert "1.weight, 1.bias" in explain_error(error).line


def test_ranks_with_the_same_failure_share_a_line() -> None:
    found = explain(WorkerGroupError("failed", {0: ValueError("x"), 1: ValueError("x"), 2: KeyError("y")}))
    assert found.line == "ranks 0, 1: ValueError: x; rank 2: KeyError: 'y'"


def test_an_explained_failure_survives_the_way_to_the_controller() -> None:
    sent = WorkerFailed(Failure("stalled", "it hangs", retry=False))
    got = pickle.loads(pickle.dumps(sent))
    assert got.failure == sent.failure
    assert str(got) == "it hangs"


def test_the_line_of_the_users_code_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def loss():\n    raise KeyError('label')\n")
    space: dict = {}
    exec(compile((tmp_path / "mine.py").read_text(), str(tmp_path / "mine.py"), "exec"), space)
    with pytest.raises(KeyError) as caught:
        space["loss"]()
    assert explain_error(caught.value).line == "KeyError: 'label' (loss, line 2 of mine.py)"


def test_a_crash_is_named_with_its_line_and_its_stack_is_in_the_log(tmp_path: Path) -> None:
    file, script = crash_file(tmp_path, 1), tmp_path / "mine.py"
    script.write_text(
        "import faulthandler, os, signal\n"
        f"faulthandler.enable(open({str(file)!r}, 'w'))\n"
        "def loss():\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "loss()\n"
    )
    subprocess.run([sys.executable, script], check=False)
    failures = {0: CONSEQUENCE, 1: ActorDiedError()}
    found = explain(WorkerGroupError("failed", failures), tmp_path)
    assert found.line == "rank 1: the worker process crashed: segmentation fault in loss, line 4 of mine.py"
    assert found.cause == "job"
    log_crashes(tmp_path / "train.log", tmp_path, failures)
    assert "line 5 in <module>" in (tmp_path / "train.log").read_text()


def test_without_a_crash_a_dead_worker_is_only_lost(tmp_path: Path) -> None:
    crash_file(tmp_path, 0).write_text("")
    assert explain(WorkerGroupError("failed", {0: ActorDiedError()}), tmp_path).cause == "worker_lost"


@pytest.mark.parametrize(
    "call",
    [
        lambda x: nn.functional.linear(x.double(), x),
        lambda x: x @ x,
        lambda x: x + x[:, :2],
        lambda x: nn.Conv2d(1, 2, 1)(x.reshape(1, 2, 1, 3)),
        lambda x: nn.BatchNorm1d(5)(x),
        lambda x: nn.LSTM(5, 4)(x),
        lambda x: nn.functional.cross_entropy(x, x[:, 0]),
        lambda x: nn.functional.cross_entropy(x, torch.zeros(7, dtype=torch.int64)),
        lambda x: torch.cat([x, x[0]]),
        lambda x: nn.functional.embedding(x, x),
        lambda x: nn.LayerNorm(5)(x),
        lambda x: x.view(7),
    ],
)
def test_tensors_that_do_not_fit_are_never_tried_again(call: Callable[[Tensor], Tensor]) -> None:
    """What torch itself says, in this release."""
    with pytest.raises((RuntimeError, ValueError)) as raised:
        call(torch.randn(2, 3))
    found = explain_error(raised.value)
    assert not found.retry, found.line
    assert "sizes or types of two tensors do not fit" in found.line
