"""What one consumer is made of."""
