"""What ``gpu_session.py`` measures on a GPU.

``cuda_counts``: host waits and kernel launches of a step
``tiny``: the small loop that the measurements share
``measurements``: one function for each measurement, each run in a process of its own
``machine_needs``: the packages that a bare machine lacks
"""
