"""Ray: the session, the driver of a job, the trainer, failures."""
