"""A storage server: memory that it offers, and how it is registered. The bytes move in C (native/src/data)."""
