"""Record: every anomaly is counted, journaled and followed to its outcome.

``recorder``: turns the evidence of a step into counts and incidents
``lasting``: a condition that lasts is one incident, with a begin and an end
``journal``: the append-only file of incidents
``attribution``: layers and ranks, ranked by their share of the evidence
``metrics``: totals and last values of one job
``totals``: histograms and counters that only grow
``exposition``: the Prometheus families, and how they are rendered
``cardinality``: bounds the number of series
"""
