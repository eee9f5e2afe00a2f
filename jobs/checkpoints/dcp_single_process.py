"""torch.distributed.checkpoint in one process: its stages, called in order.

DCP's entry points do the same but warn that there is no process group. Here that is intended: a single worker
saves without one, and on loading each rank reads independently, so that no rank waits for one that failed.
"""

from __future__ import annotations

from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter

from jobs.checkpoints.state import Tensors


def save_local(tensors: Tensors, writer: StorageWriter) -> None:
    """Writes ``tensors``; raises what the writer raises."""
    planner = DefaultSavePlanner()
    writer.reset()
    planner.set_up_planner(tensors, writer.storage_meta(), is_coordinator=True)
    writer.set_up_storage_writer(True)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    plans, metadata = planner.create_global_plan([plan])
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
    writer.finish(metadata, [writer.write_data(plan, planner).wait()])


def load_local(tensors: Tensors, reader: StorageReader) -> None:
    """Fills ``tensors`` in place; raises what the reader raises."""
    planner = DefaultLoadPlanner()
    reader.reset()
    metadata = reader.read_metadata()
    planner.set_up_planner(tensors, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    plans = reader.prepare_global_plan(planner.create_global_plan([plan]))
    reader.read_data(planner.finish_plan(plans[0]), planner).wait()
