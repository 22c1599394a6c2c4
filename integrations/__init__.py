"""What other projects bring and expect: their checkpoints, and their names for the kernels' operations."""
