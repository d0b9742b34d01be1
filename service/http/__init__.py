"""What every endpoint shares of HTTP: dispatch, bodies, parsing, responses and problems."""
