"""The catalogue: what is known of items and users besides ratings, outside epochs and generations."""
