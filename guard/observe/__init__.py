"""Observe: what gradients, weights and buffers show in one step.

``observer``: one pass over the gradients: global norm, norm of each parameter, finite check
``watched``: which parameters: those that the optimizer steps, at every step
``norms``: squared L2 norms of many gradients at once
``host_copy``: what the host reads of a device one step later
``gradients``: a gradient of any kind as a dense real tensor
``local_norms``: gradient norm of each rank before the all-reduce, by hooks or DDP's communication hook
``sharded_norms``: the same under FSDP2, by its reduce-scatter
``fsdp2``: what is read of FSDP2's own state
``displacement``: how far the weights moved since they were measured before
``window_rate``: the learning rate of the steps between two measurements of it
``attention_logits``: the largest of each head, read while the model computes
``last_forward``: what the model computed last, to be computed again
``projections``: where a layer makes queries and keys, and how they are rescaled
``own_rate``: optimizers that find their own learning rate
``shards``: the same under FSDP2, where each rank holds a shard
``noise_scale``: gradient noise scale, a hint on batch size
``robust_window``: exact sliding median and MAD
``culprits``: the members of a batch that explain what was measured of it
"""
