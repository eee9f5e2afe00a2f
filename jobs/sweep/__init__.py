"""A sweep: many jobs that differ in a few fields, on Ray Tune.

``spec``: which fields, in which ranges
``trial``: one job as a trial of Tune
``run``: the sweep, from its spec to its table
``table``: what became of each trial
"""
