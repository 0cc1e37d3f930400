"""The forms of an export, one file each: how each is written and opened again."""
