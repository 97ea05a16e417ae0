"""What a credential opens: the scopes, and which of them includes which."""

ALL = "all"
READ = "read"
"""Everything that ends in ``.read``."""
MODEL_REQUEST = "model.request"
MODEL_READ = "model.read"
FILES = "api.files"
FILES_READ = "api.files.read"
FINE_TUNING = "api.fine_tuning"
FINE_TUNING_READ = "api.fine_tuning.read"
USAGE_READ = "usage.read"

SCOPES = frozenset(
    {
        ALL,
        READ,
        MODEL_REQUEST,
        MODEL_READ,
        FILES,
        FILES_READ,
        FINE_TUNING,
        FINE_TUNING_READ,
        USAGE_READ,
    }
)


def grants(scopes: frozenset[str], scope: str) -> bool:
    """Whether the scopes include the wanted one.

    ``all`` includes every other, ``read`` all that end in ``.read``, ``api.files`` includes
    ``api.files.read`` and ``model.request`` includes ``model.read``.
    """
    if scope in scopes or ALL in scopes:
        return True
    if not scope.endswith(".read"):
        return False
    if READ in scopes or scope.removesuffix(".read") in scopes:
        return True
    return scope == MODEL_READ and MODEL_REQUEST in scopes
