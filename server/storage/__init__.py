"""A storage server: memory that it offers, and how it is registered."""
