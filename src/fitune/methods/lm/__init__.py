"""Next-token prediction on plain text."""
