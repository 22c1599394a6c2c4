"""What works beside the warps: tensor cores and their memory, and the copy engine."""
