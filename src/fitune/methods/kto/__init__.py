"""kto: single answers that are wanted or not, against the reference."""
