"""What a running job reports.

``progress``: rows of ``metrics.jsonl``, status and events, from the training loop
``hub``: the Ray actor that holds the metrics of all jobs and delivers commands
``hub_server``: its HTTP page
``hosts``: loopback addresses, and the Host header
``command``: passes a command to a job through the hub
``counter_carryover``: keeps counters from falling at a restart
``console``: the live display in a terminal
``event_line``: an incident as one line
``driver_events``: what the driver receives from the hub, and Ctrl-C
``gpu``: memory and utilization of the GPU
``profile``: a trace of a few steps
``terminal``: output whose reader may go away
``early_stopping``: whether evaluations still improve
"""
