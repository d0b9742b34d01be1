"""Child processes: started, watched, restarted, stopped; the standard library, and uvloop where installed."""

# What our packages stand in: nothing in a checkout, `foldin.` in the wheel, whose build moves them there.
_ABOVE = __name__.removesuffix("processes")


def module_name(name: str) -> str:
    """Return the name under which `name`, the one that a module of ours has in a checkout, is imported here.

    What is known by text, for a command line or for `import_module`, has no import that the build could move.
    """
    return name if name.partition(".")[0] == "foldin" else f"{_ABOVE}{name}"
