"""Events of other types than ratings, and which types there are."""
