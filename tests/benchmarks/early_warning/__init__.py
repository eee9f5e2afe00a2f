"""What announces an explosion that nobody injected, how long before, and how often it is wrong?

``trainings``: runs whose rate becomes too high, healthy runs of the same models, and the healthy trainings
``log``: writes every signal of a run, so that all candidates are judged on the same runs
``networks``: what is trained, in two halves: rules were chosen on the first
``further``: six networks of neither half
``unlike``: five that resemble none of the others
``candidates``: the signals that could announce it, from a log
``acting``: runs that it warns of, with the rate held, with rollbacks alone, with neither
``cost``: what it costs
``bench_warnings``: lead, runs warned and false warnings of each, and what is missed
"""
