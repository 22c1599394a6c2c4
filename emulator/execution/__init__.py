"""Instructions to the Python that executes them."""
