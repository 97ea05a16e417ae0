"""Changes of the database's schema, one module each, run by Alembic."""
