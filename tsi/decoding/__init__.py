"""One reasoning step: which tokens a policy draws and where the step ends."""
