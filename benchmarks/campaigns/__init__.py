"""Campaigns: a whole stack is killed or refitted under load, and every answer is checked."""
