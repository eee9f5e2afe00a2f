"""The models that a spec can name."""
