"""On which nodes the ranks run, and when a job moves.

``plan``: how many workers fit, and what happens when a node is to be left
``scaling_policy``: how many workers Ray Train starts
``hardware_faults``: counts them by node; a node with too many is left
``preemption``: saves in time when a node is about to be taken away
"""
