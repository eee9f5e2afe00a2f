"""Act: apply, clip, skip, roll back; everything that a step may change.

``training_state``: owns model, optimizer, schedule and states; carries out the rung
``rollback``: which state is restored, and which data follow
``accumulation``: micro-batches of one step; a non-finite one is dropped, and from PowerSGD's memory too
``loop_checks``: mistakes in the loop around the guard
``other_optimizers``: an optimizer without a guard steps what one watches
``frozen``: which frozen weights a snapshot must hold
``snapshot``: healthy states in memory
``stores``: copies of tensors in reused memory
``pack``: many small ones at once
``buffers``: restores buffers after a skip
``fused``: clip and skip inside torch's fused optimizers
``scaler``: mixed precision with a GradScaler
``cooldown``: lower learning rate and more regularization after a rollback
``regularize``: decoupled L1, L2 and anchor penalties
``moments``: a clipped outlier leaves nothing in the optimizer
``outside``: weights that the loop changes between two steps, frozen ones too
``fingerprints``: the bits of a tensor as one number
``replicas``: weights, moments and buffers are compared between ranks, and copied where memory was damaged
``shard_copies``: the same of shards that several ranks hold, as under HSDP
``resting``: bits that flip between two steps in shards that no other rank holds
``rates``: the learning rate that an update used
``rng``: the random number generators that a step draws from
``untouched``: computes beside the step, and leaves no trace
"""
