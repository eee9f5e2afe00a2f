"""Training on one rank.

``loop``: the loop, from the first batch to the result
``setup``: builds what the loop uses, from the spec
``run``: the parts that the loop works on
``announce``: changes on purpose that it announces to the guard
``stop``: whether this rank must stop
``stepper``: one step: micro-batches, precision, regularizers, guard, average
``evaluate``: metrics on held-out data
``samples``: text that a language model writes at its end
``optim``: optimizers and schedules
``muon``: Muon
``regularize``: penalties, noise
``dropout``: sets its rates
``compile``: ``torch.compile``
``determinism``: what a bit-exact resume needs
``preflight``: the check before the first step
``lr_range``: the learning-rate range test
``data_agreement``: checks that all workers see the same data
``watchdog``: a worker that hangs ends itself
"""
