"""What a fitted model is: its tables, parameters, row layout and bytes."""
