"""What a run gives back: particles, answers, cost, notes."""
