"""What gateway/storage raises."""


class DatabaseError(Exception):
    """The database cannot be used as it is; the message is one line and says what to do."""
