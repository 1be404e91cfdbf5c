"""`tsi solve`: solve one problem, print the result and plot the run."""
