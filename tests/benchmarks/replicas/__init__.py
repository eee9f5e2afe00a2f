"""Flipped bits: found, corrected, and what looking for them costs.

``bench_flips``: random flips on two and three ranks, a long run without any
``bench_cost``: what the comparisons of ``replicas: auto`` cost of a step
"""
