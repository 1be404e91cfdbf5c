"""`tsi serve`: a sampler behind an OpenAI-compatible endpoint."""
