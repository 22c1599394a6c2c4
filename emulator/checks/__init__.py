"""What can be wrong with a kernel: the errors, the checks that have names, races. Knows nothing of the machine."""
