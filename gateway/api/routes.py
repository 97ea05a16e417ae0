"""All of the administration over HTTP, but for limits and usage, which have modules of their own."""

from starlette.routing import Route

from gateway.api.admin_keys import admin_key_routes
from gateway.api.audit_logs import audit_routes
from gateway.api.organizations import organization_routes
from gateway.api.project_keys import project_key_routes
from gateway.api.projects import project_routes
from gateway.api.unsupported import unsupported_routes
from gateway.api.users import user_routes


def administration_routes() -> list[Route]:
    """Every route; the first that matches is taken."""
    return [
        *organization_routes(),
        *project_routes(),
        *project_key_routes(),
        *admin_key_routes(),
        *user_routes(),
        *audit_routes(),
        *unsupported_routes(),
    ]
