"""What is made of the emulated device: the command line, profiles, pictures."""
