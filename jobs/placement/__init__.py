"""On which nodes the ranks run, and when a job moves.

``plan``: how many workers fit, and what happens when a node must be avoided
``scaling_policy``: how many workers Ray Train starts
``hardware_faults``: counts them by node; one with too many is avoided
``preemption``: saves in time when a node is about to be removed
"""
