"""Makes what is the same in every client from the service's description: run by `make clients`."""
