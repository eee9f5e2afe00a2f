"""Act: apply, clip, skip, roll back, cool down. ``training_state`` owns everything that a step may change."""
