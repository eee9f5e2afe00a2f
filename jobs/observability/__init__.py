"""What a running job reports: rows, events, metrics, the hub, the console."""
