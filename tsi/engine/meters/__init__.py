"""What a run took: seconds, compiled programs, bytes."""
