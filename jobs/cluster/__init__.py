"""Ray: how a job runs on a cluster.

``driver``: runs one job: session, hub, training, live display, result
``session``: connects to a cluster, or starts an embedded one
``fit``: Ray Train in a thread
``trainer``: its trainer, which can be given up
``failures``: why a training failed, in one line
``head_watch``: notices that the head of the cluster died
``ray_messages``: moves Ray's own output to the log file
"""
