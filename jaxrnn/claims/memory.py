"""Claims about memory."""
