"""The guard among thousands of ranks, in one process.

``simulated``: a guard, and the rows of all other ranks
"""
