"""Training on one rank: the loop, what it is built of, and what runs beside it."""
