"""Decide: from agreed numbers to a verdict, a rung of the ladder and a clip.

``decider``: joins the modules below
``detector``: the verdict of one step, from its loss and norms
``baseline``: robust level and noise of one signal
``ladder``: from a verdict to an action: apply, clip, skip, roll back, halt
``outliers``: a bad batch on healthy weights is skipped, and nothing is rolled back
``own_spikes``: spikes that training makes and ends itself are let through, on trial
``new_level``: a level that comes back on healthy weights is the data's
``rates``: whether the learning rate has just jumped
``rate_watch``: what the loss says about the rate, by the five that follow, and what is done
``start_rate``: whether the learning rate is too high for the first steps
``duel``: two rates from one start, which ends lower on the same batches
``first_climbs``: climbs from the start of the run, with which another cause than the rate is told
``overshoot``: steps that are too long, seen on the batch's own loss
``climbing``: a warning: the loss climbs under a rate beyond what was good, or under long updates
``recompute``: a suspect batch computed again, to tell a hardware fault from bad data
``repeats``: a healthy batch computed twice now and then, compared to the bit
``rank_exclusion``: the same batch without a rank whose data stays bad
``bad_samples``: which samples made a batch bad, and the batch without them
``runaway_updates``: weights that move ever farther without progress
``drift``: a loss that creeps up, a gradient that fades
``vanishing``: layers that the gradient no longer reaches
``advice``: what a user should know of a run that goes on
``replay``: the detector on a recorded log
"""
