"""`tsi serve`: a sampler behind an endpoint with OpenAI's interface."""
