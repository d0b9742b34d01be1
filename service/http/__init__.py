"""HTTP at the edge: dispatch, bodies, parsing, responses, problems, and the fast path of GET /predict."""
