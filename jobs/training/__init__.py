"""Training on one rank.

``loop``: the loop, from the first batch to the result
``setup``: builds what the loop uses, from the spec
``run``: the parts that the loop works on
``announce``: changes on purpose that it announces to the guard
``stop``: whether this rank must stop
``stepper``: one step: micro-batches, precision, regularizers, guard, average
``evaluate``: metrics on held-out data
``stopwatch``: the time that a step waits for its data
``samples``: text that a language model writes at its end
``optim``: optimizers and schedules
``by_path``: those that a spec names by import path
``muon``: Muon
``regularize``: penalties, noise
``dropout``: sets its rates
``compile``: ``torch.compile``
``determinism``: what a bit-exact resume needs
``preflight``: the check before the first step
``data_view``: what a batch looks like, and what cannot be right with it
``lr_range``: the learning-rate range test
``together``: an error on one rank ends all of them
``data_agreement``: checks that all workers see the same data
``watchdog``: a worker that hangs ends itself
``predict``: what a trained model says of image files
"""
