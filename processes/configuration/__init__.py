"""`foldin.toml`: one file with the settings of all roles."""
