"""What producers import: the payload types of the shipped jobs. Loads msgspec and no handler code."""
