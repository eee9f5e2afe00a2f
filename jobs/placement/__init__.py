"""Where the ranks of a job run, and when it moves elsewhere."""
