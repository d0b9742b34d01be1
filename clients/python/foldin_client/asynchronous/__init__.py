"""The client that awaits. The one that blocks is made of this text."""
