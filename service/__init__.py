"""What outlives a job: the command line."""
