"""All that speaks Redis, but for a worker's verbs in `streams`."""
