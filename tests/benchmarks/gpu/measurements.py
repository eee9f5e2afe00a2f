"""The measurements of ``gpu_session.py``: one function each, run in a process of its own.

    python -m gpu.measurements NAME --device cuda|cpu --json FILE

On the CPU they are a rehearsal: the same lines run, and what only a GPU can show is "not measured".
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from measure import publish
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpu.cuda_counts import launches, waits
from gpu.tiny import BARE, BATCH, WIDTH, Loop, tiny_model
from guard.act.stores import TensorStore
from guard.observe.local_norms import local_norms

Rows = list[dict[str, Any]]
NOT_MEASURED = "not measured"
MODES = (BARE, "off", "shadow", "exact", "deferred")
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing clipped": ({}, {}),
    "every step clipped": ({"clip": {"max_norm": 1e-6}}, {}),
    "default update_norm, steps 45 to 54": ({"update_norm": 25}, {}),
    "learning rate in a tensor": ({}, {"tensor_rate": True}),
    "bfloat16 weights": ({}, {"dtype": torch.bfloat16}),
}
"""Settings of the guard, and of the loop."""
WARM_STEPS = 44
DELAY_CYCLES = 200_000_000
"""About a tenth of a second on a GPU."""


def counts(device: str) -> Rows:
    """Host waits and kernel launches of a whole step, forward and backward included."""
    rows = []
    for (case, (config, options)), mode in itertools.product(CASES.items(), MODES):
        loop = Loop(device, mode, config, **options)
        on_gpu = device == "cuda"
        for _ in range(WARM_STEPS if on_gpu else 2):
            loop.step()
        rows.append(
            {
                "case": case,
                "mode": mode,
                "host waits a step": waits(loop.step) if on_gpu else NOT_MEASURED,
                "launches a step": launches(loop.step) if on_gpu else NOT_MEASURED,
            }
        )
    return rows


def skip_and_rollback(device: str) -> Rows:
    """A short run with a batch that is not finite and three that explode; compute-sanitizer watches it."""
    rows = []
    for mode in ("exact", "deferred"):
        loop = Loop(device, mode, {"snapshot": {"every_steps": 10}})
        actions = [loop.step(batch).action for batch in _batches(device, 60)]
        assert loop.guard is not None
        late = loop.guard.flush()
        actions += [] if late is None else [late.action]
        finite = all(bool(weight.isfinite().all()) for weight in loop.weights())
        found = {action: actions.count(action) for action in ("skipped", "rolled_back")}
        rows.append({"mode": mode, **found, "weights finite": finite})
    return rows


def _batches(device: str, steps: int) -> list[Tensor]:
    batches = [torch.randn(BATCH, WIDTH, device=device) for _ in range(steps)]
    batches[30] = torch.full_like(batches[30], torch.inf)
    for step in (45, 46, 47):
        batches[step] *= torch.nan
    return batches


def graph_capture(device: str) -> Rows:
    """Forward and backward replayed from a CUDA graph: after a skip the weights must move again."""
    rows = []
    for mode in ("exact", "deferred"):
        loop = Loop(device, mode)
        replay = (_captured if device == "cuda" else _emulated)(loop)
        actions, moved = [], []
        assert loop.guard is not None
        for batch in _batches(device, 60)[:40]:
            before = loop.weights()
            loop.batch.copy_(batch)
            loop.guard.observe_loss(replay())
            actions.append(loop.guard.step().action)
            moved.append(any(not torch.equal(a, b) for a, b in zip(before, loop.weights(), strict=True)))
        rows.append({"mode": mode, "skipped": actions.count("skipped"), "moved after": all(moved[34:])})
    return rows


def _captured(loop: Loop) -> Callable[[], Tensor]:
    def run() -> Tensor:
        loop.optimizer.zero_grad()
        loss: Tensor = loop.model(loop.batch).square().mean()
        loss.backward()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warms up, as torch's notes on CUDA graphs ask for
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    loop.optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = run()

    def replay() -> Tensor:
        graph.replay()
        return loss.detach()

    return replay


def _emulated(loop: Loop) -> Callable[[], Tensor]:
    """Gradients in fixed memory that each replay writes."""
    parameters = list(loop.model.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    static = [parameter.grad for parameter in parameters]

    def replay() -> Tensor:
        loss = loop.model(loop.batch).square().mean()
        torch._foreach_copy_(static, torch.autograd.grad(loss, parameters))
        return loss.detach()

    return replay


def host_snapshot(device: str) -> Rows:
    """A copy in host memory is of the moment it was made, although a long kernel runs before it."""
    tensors = [torch.randn(512, 512, device=device) for _ in range(4)]
    store, before, alike = TensorStore("host"), [tensor.clone() for tensor in tensors], []
    for _ in range(3):
        if device == "cuda":
            torch.cuda._sleep(DELAY_CYCLES)
        store.save(tensors)
        store.wait()
        for tensor in tensors:
            tensor.fill_(torch.nan)
        store.restore(tensors)
        alike.append(all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True)))
    return [{"delayed": device == "cuda", "copies to the bit": f"{sum(alike)} of {len(alike)}"}]


def memory(device: str) -> Rows:
    """Peak memory after steps 1 and 51, relative to that of the weights."""
    width = 2048 if device == "cuda" else 64
    rows = []
    for mode, place in ((BARE, "device"), ("exact", "device"), ("exact", "host"), ("deferred", "device")):
        model = nn.Sequential(nn.Linear(WIDTH, width), *(nn.Linear(width, width) for _ in range(8))).to(
            device
        )
        own = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        config = {"snapshot": {"place": place}, "update_norm": 25}
        loop, peaks = Loop(device, mode, config, model=model), []
        for step in range(1, 52):
            loop.step()
            if step in (1, 51):
                peaks.append(torch.cuda.max_memory_allocated() / own if device == "cuda" else NOT_MEASURED)
        rows.append({"mode": mode, "snapshots": place, "step 1": peaks[0], "step 51": peaks[1]})
        del loop, model
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return rows


def comm_hook(device: str) -> Rows:
    """The local norm that DDP's communication hook measures, against the norm of the gradients; one rank."""
    backend = "nccl" if device == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, store=dist.FileStore(f"{folder}/store", 1), rank=0, world_size=1)
        model = DistributedDataParallel(tiny_model(device), gradient_as_bucket_view=True)
        local = local_norms(list(model.parameters()), model, "comm")
        worst = 0.0
        for _ in range(5):
            model.zero_grad()
            local.arm(True)
            model(torch.randn(BATCH, WIDTH, device=device)).square().mean().backward()
            norm = float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
            worst = max(worst, abs(local.take() / norm - 1))
        dist.destroy_process_group()
    return [{"backend": backend, "steps": 5, "largest relative difference": worst}]


MEASUREMENTS: dict[str, Callable[[str], Rows]] = {
    "counts": counts,
    "skip and rollback": skip_and_rollback,
    "graph capture": graph_capture,
    "host snapshot": host_snapshot,
    "memory": memory,
    "comm hook": comm_hook,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=MEASUREMENTS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    publish(options.name, {options.name: MEASUREMENTS[options.name](options.device)}, options.json, seeds=[0])


if __name__ == "__main__":
    main()
