"""What watches single steps of a trainer, apart from its log."""
