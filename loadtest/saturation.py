"""To come."""


def options(p):
    pass
