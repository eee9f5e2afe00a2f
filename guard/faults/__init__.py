"""Faults on demand, as a test, a benchmark or a spec asks for them."""
