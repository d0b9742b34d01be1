# Made by `make clients` of asynchronous/: change that, not this.
"""The client that awaits. The one that blocks is made of this text."""
