"""One bad sample in a batch of 64: is it ranked first?

``cases``: four kinds of bad sample, each in a model that it hurts
``bench_samples``: kinds and seeds, on one rank and on two
"""
