"""From the name of a model to its files, and from the files to the model."""
