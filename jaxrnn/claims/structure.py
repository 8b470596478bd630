"""Claims about structure."""
