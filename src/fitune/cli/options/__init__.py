"""What commands share: every setting as a flag, `--json`, tables."""
