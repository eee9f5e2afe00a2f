"""Faults against methods: who survives, at what cost, and who can say what happened."""
