"""What is skipped or expected to fail, each with torch's own entry that has the same: at most 15 tests, none so far."""
