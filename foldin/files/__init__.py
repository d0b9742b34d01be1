"""Files of ratings become columns: their layout is found, their rows are checked, each bad one is named."""
