"""Which settings `foldin.toml` may have: as data, so that each role refuses an unknown key of every section
without loading the others. A test holds it to the declarations.
"""

# By section and key, the variable that is set. A key is the name of the variable without `FOLDIN_`, and
# without that of its section. Several roles may read one variable; it stands in one place.
VARIABLES: dict[str, dict[str, str]] = {
    "": {
        "log_level": "FOLDIN_LOG_LEVEL",
        "log_format": "FOLDIN_LOG_FORMAT",
        "traces_url": "FOLDIN_TRACES_URL",
    },
    "store": {
        "redis_url": "FOLDIN_REDIS_URL",
        "redis_password_file": "FOLDIN_REDIS_PASSWORD_FILE",
        "namespace": "FOLDIN_NAMESPACE",
        "partitions": "FOLDIN_PARTITIONS",
        "scale": "FOLDIN_SCALE",
        "timeout_s": "FOLDIN_STORE_TIMEOUT_S",
        "stream_limit": "FOLDIN_STREAM_LIMIT",
        "durability": "FOLDIN_DURABILITY",
        "max_items": "FOLDIN_MAX_ITEMS",
    },
    "service": {
        "host": "FOLDIN_HOST",
        "port": "FOLDIN_PORT",
        "workers": "FOLDIN_WORKERS",
        "cache_dir": "FOLDIN_CACHE_DIR",
        "access": "FOLDIN_ACCESS",
        "hosts": "FOLDIN_HOSTS",
        "origins": "FOLDIN_ORIGINS",
        "proxies": "FOLDIN_PROXIES",
        "tls_cert": "FOLDIN_TLS_CERT",
        "tls_key": "FOLDIN_TLS_KEY",
    },
    "trainer": {
        "archive_dir": "FOLDIN_ARCHIVE_DIR",
        "fits_dir": "FOLDIN_FITS_DIR",
        "linger_s": "FOLDIN_LINGER_S",
        "store_dir": "FOLDIN_STORE_DIR",
        "engine": "FOLDIN_ENGINE",
        "refit_events": "FOLDIN_REFIT_EVENTS",
        "refit_seconds": "FOLDIN_REFIT_SECONDS",
        "refit_growth": "FOLDIN_REFIT_GROWTH",
        "refit_share": "FOLDIN_REFIT_SHARE",
        "fit_threads": "FOLDIN_FIT_THREADS",
        "trash_days": "FOLDIN_TRASH_DAYS",
        "trash_bytes": "FOLDIN_TRASH_BYTES",
        "address": "FOLDIN_TRAINER_ADDRESS",
    },
    "environment": {
        "host": "FOLDIN_ENVIRONMENT_HOST",
        "port": "FOLDIN_ENVIRONMENT_PORT",
        "seed": "FOLDIN_ENVIRONMENT_SEED",
    },
    "up": {"play_steps": "FOLDIN_PLAY_STEPS"},
    "client": {"api_key_file": "FOLDIN_API_KEY_FILE"},
}
# By section, keys of settings that have a flag of that name and no variable.
FLAGS: dict[str, tuple[str, ...]] = {
    "environment": (
        *("max_tokens", "users", "items", "known", "late_users", "late_items", "drift", "noise"),
        "variables",
    ),
    # Not --adopt: what is said once, by a person who has looked, must not happen at each start.
    "up": ("data", "cluster", "play", "no_play"),
}
# These take a list.
MANY = {"FOLDIN_HOSTS", "FOLDIN_ORIGINS", "FOLDIN_PROXIES"}
# What others must not read stands in a file of its own, which this key names.
SECRETS = {"api_key": "api_key_file", "redis_password": "redis_password_file"}
# By section and key: the variable that is set, or the place of a setting that has none.
KEYS: dict[str, dict[str, str]] = {
    section: {**names, **{key: f"{section}.{key}" for key in FLAGS.get(section, ())}}
    for section, names in VARIABLES.items()
}


def place(section: str, key: str) -> str:
    """Return how messages name a key of the file."""
    return f"[{section}] {key}" if section else key
