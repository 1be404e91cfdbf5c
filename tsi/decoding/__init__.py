"""Draw one reasoning step: its tokens, and where it ends."""
