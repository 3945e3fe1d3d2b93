"""What a worker tells monitoring systems about itself: metrics for Prometheus."""
