"""Choose the number of rows and blocks, and the shapes of compiled programs."""
