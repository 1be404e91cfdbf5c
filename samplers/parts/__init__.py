"""Parts that samplers share: resampling, potentials, schedules, path records."""
