"""What this machine does, measured beside raw Redis in the same run."""
