"""One sampler on many problems of one policy and one reward."""
