"""Observe: what the gradients, the weights and the buffers show in one step."""
