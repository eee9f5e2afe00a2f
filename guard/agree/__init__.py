"""Agree: every rank holds the same numbers before any of them decides.

``agreement``: one small row of each rank, gathered after backward; checksums of the deciding state
``sample_rows``: the bad samples of all ranks, ranked
``settings``: what all ranks must have alike
``divergence``: ranks that differ stop together, and the error names where
``rank_failure``: a rank that fails stops the others and names the cause
"""
