"""What people and probes see of a worker."""
