"""Flipped bits: found, corrected, and what looking for them costs.

``bench_flips``: random flips on two and three ranks, a long run without any, the cost of a check
"""
