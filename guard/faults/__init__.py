"""Fault injection, for tests, benchmarks and drills: ``config`` describes a fault, ``injector`` causes it."""
