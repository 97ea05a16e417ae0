"""Adapters of tenants: their upload, what is checked of it, and how a name finds one."""
