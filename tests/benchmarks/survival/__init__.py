"""Faults against methods: which survive, at what cost, and what incidents name."""
