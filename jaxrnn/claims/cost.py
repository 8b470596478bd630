"""Claims about cost."""
