"""Rating data: real sets, made ones of any size, and generations made of them."""
