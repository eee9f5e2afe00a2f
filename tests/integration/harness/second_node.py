"""Joins a Ray cluster of this machine as a second node, on loopback, until it is asked to end.

``python second_node.py HOST:PORT CPUS``. Ray's command line would take another network interface.
"""

from __future__ import annotations

import signal
import sys

from ray._private.node import Node
from ray._private.parameter import RayParams


def main(address: str, cpus: str) -> None:
    """Starts the node, prints a line, and waits."""
    end = {signal.SIGTERM, signal.SIGINT}
    parameters = RayParams(
        redis_address=address,
        gcs_address=address,
        num_cpus=int(cpus),
        num_gpus=0,
        object_store_memory=150 * 2**20,
        node_ip_address="127.0.0.1",
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
        dashboard_agent_listen_port=None,
        include_log_monitor=False,
    )
    node = Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=True)
    print("the node has joined", flush=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, end)
    signal.sigwait(end)
    node._drain_node_before_shutdown()  # as Ray's command line does on SIGTERM
    node.kill_all_processes(check_alive=False, allow_graceful=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
