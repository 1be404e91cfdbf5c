"""The accuracy of a run: tails of weights, errors of evidence and answers."""
