"""What several samplers share: resampling, potentials, schedules, stores of paths."""
