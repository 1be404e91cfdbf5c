"""One problem solved on the command line, with pictures of the run."""
