"""The comparison with other job runtimes: the same work, on the same server, in the same run."""
