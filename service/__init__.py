"""The command line and the service that runs jobs for a team."""
