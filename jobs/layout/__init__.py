"""How a model is divided over the workers, where that is not DDP (``parallel`` in a spec).

``build``: the model of a job, divided
``mesh``: which ranks share what
``blocks``: the repeated parts of a model, divided and recomputed one by one
``sharded``: FSDP2, HSDP and tensor parallel, applied to a model
``tensor``: the plan of tensor and sequence parallel for the gpt
``first_weights``: one rank builds the model, the others get their shards
``activations``: activation checkpointing
``lockstep``: ranks with unequal shares of the test set evaluate together
``unused``: names of the parameters that DDP reports by number as unused
``memory``: what a layout needs of each GPU
"""
