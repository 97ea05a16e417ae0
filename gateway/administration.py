"""All of the administration over HTTP, but for limits and usage, which have modules of their own."""

from starlette.routing import Route

from gateway.admin_keys_api import admin_key_routes
from gateway.audit_api import audit_routes
from gateway.organizations_api import organization_routes
from gateway.project_keys_api import project_key_routes
from gateway.projects_api import project_routes
from gateway.unsupported_api import unsupported_routes
from gateway.users_api import user_routes


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
