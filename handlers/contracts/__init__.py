"""The payload types of the shipped jobs, for producers: importing them loads msgspec and no handler code."""
