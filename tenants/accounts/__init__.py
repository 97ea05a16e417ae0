"""Organizations, projects, users, service accounts and their keys."""
