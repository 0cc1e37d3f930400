"""What a data set would teach, counted before anything is trained: rows, pairs, judged answers."""
