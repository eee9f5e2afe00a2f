"""What befalls the service while jobs are submitted."""
