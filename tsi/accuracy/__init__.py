"""How far a run can be trusted: tails of weights, errors of evidence and answers."""
