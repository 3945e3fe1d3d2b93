"""The benchmark: what a worker and a producer reach on this machine, beside raw Redis in the same run."""
