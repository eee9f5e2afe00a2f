"""Ray: how a job runs on a cluster.

``driver``: runs one job: session, hub, training, live display, result
``session``: connects to a cluster, or starts an embedded one
``fit``: Ray Train in a thread
``failures``: why a training failed, in one line
``head_watch``: notices that the head of the cluster died
"""

import os

os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
"""Read by Ray Train when it is imported, and passed on to its workers: its first version is another API."""
